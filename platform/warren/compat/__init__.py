"""Ties to the internals of other libraries, one module per library.

Each says why it is needed; docs/compatibility.md lists them with their risk.
"""
