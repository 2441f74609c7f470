"""Measuring a checkpoint: scorers, statistics and the report."""
