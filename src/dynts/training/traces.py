"""The former place of `dynts.traces.traces.read_traces`, kept for code that imports it from here."""

from dynts.traces.traces import Trace, read_traces

__all__ = ["Trace", "read_traces"]
