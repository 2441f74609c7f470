"""Warren: train, evaluate, release and serve small multimodal language models on Ray."""

__version__ = "0.1.0"
