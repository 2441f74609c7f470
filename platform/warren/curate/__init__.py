"""Data selection: embeddings, clusters, duplicates, rank bands, filters. It imports no Ray; a `Runner` runs tasks."""
