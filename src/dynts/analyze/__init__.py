"""What the method rests on: the importance of tokens, what an answer needs of them, how well it is predicted."""
