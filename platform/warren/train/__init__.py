"""Training: the DeepSpeed engine, the training loop, checkpoints and the run record. It imports no Ray."""
