"""Public data sets: where each is published and under which licence, and getting it."""
