"""Ray Data batch jobs: raw pairs to datasets, and a checkpoint's evaluation."""
