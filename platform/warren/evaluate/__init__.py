"""Evaluation: predictions for datasets, answers and scores of benchmarks, intervals and reports."""
