"""Rules that turn an answer into a score, shared by benchmarks."""
