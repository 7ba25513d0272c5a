"""Stage 1: everything frozen. Studies in, cache out."""
