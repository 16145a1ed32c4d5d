"""Is a model's final answer right? The last boxed answer after the thinking, compared with the gold answer."""
