"""The engine for GPU clusters: vLLM over the same release, behind the same protocol."""
