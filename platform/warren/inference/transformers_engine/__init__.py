"""The default engine: continuous batching over a transformers model, in a process of its own."""
