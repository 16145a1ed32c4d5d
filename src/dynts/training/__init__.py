"""Train an importance predictor: read traces, label their tokens, fit the predictor (arXiv 2601.18383, 3 and 4.1)."""
