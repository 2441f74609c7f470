"""Training: the DeepSpeed engine, the step, checkpoints and what a run writes down. No Ray here."""
