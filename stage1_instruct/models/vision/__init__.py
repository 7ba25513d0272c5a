"""A picture, or its embedding, becomes the features that the language model is shown."""
