"""Reasoning traces: problems, folders of traces, their tokens, and which of them are fit for what."""
