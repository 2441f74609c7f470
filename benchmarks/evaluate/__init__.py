"""How fast a benchmark is asked, beside one question after another and lmms-eval's own loop."""
