"""The Ray Serve application: an OpenAI-compatible endpoint in front of one release."""
