"""A grid becomes runs, one pass over the cache trains them, one folder keeps them."""
