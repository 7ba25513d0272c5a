"""A run as a file that one can hand over: without the cache, without paths, without names."""
