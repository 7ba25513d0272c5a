"""Commands of zeus that are longer than a call."""
