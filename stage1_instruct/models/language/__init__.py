"""Image tokens and a question become an instruction."""
