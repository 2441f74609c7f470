"""From raw pairs to global batches: samples, datasets, their order, and the stream that feeds training."""
