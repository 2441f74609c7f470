"""How fast a step is, against the loops people write by hand."""
