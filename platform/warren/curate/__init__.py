"""Choosing samples: embeddings, clusters, duplicates, rank bands, filters. No Ray here: a runner runs the tasks."""
