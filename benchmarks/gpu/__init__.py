"""The GPU lane: what `make test-gpu` checks and `make bench-gpu` measures on one GPU."""
