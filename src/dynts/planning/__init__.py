"""Which budget to take: from the shape of a model, or from traces of one's own."""
