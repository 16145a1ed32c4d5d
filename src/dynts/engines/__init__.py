"""What generates: transformers and vLLM behind one interface, on one machine or on a Ray cluster."""
