"""What stands around the endpoint on a cluster: releasing, deploying, rolling back."""
