"""What a model reads: slices of a cache, and the text that goes with them."""
