"""One training stage on a cluster: Ray Data feeds DeepSpeed workers that Ray Train starts, watches and restarts."""
