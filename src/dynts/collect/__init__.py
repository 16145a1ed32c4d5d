"""Collect reasoning traces from a model, or import traces made elsewhere, into a folder that survives everything."""
