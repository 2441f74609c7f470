"""Readers of other people's formats; each yields Warren samples."""
