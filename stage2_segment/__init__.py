"""Stage 2: everything trained. Cache in, masks out."""
