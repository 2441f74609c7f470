"""Whose code the time from a killed worker to the next step is spent in."""
