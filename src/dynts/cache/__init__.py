"""A KV cache with a budget: slots, the keep rule, and the interface of a method."""
