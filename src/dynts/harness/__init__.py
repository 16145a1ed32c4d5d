"""Models of other people's evaluation harnesses, which decode under a budget."""
