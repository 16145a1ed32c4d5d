"""The former place of `dynts.traces.tokens.tokenize_trace`, kept for code that imports it from here."""

from dynts.traces.tokens import TokenizedTrace, tokenize_trace

__all__ = ["TokenizedTrace", "tokenize_trace"]
