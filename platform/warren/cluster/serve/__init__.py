"""Publishing a release, and deploying it to the endpoint of a cluster."""
