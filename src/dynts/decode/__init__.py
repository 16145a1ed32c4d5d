"""Decode under a budget: the context that users enter, the passes within it, and how tokens are drawn."""
