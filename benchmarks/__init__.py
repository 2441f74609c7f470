"""Measurements: each prints one JSON object on its last line; docs/benchmarks.md says what they found."""
