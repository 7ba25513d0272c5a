"""The loop over the studies: slices, embeddings and instructions into a cache."""
