"""What a model reads and writes as text: prompts, think markers, and the text that tokens stand for."""
