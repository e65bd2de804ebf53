"""A model behind HTTP, in the shapes that OpenAI's clients speak."""
