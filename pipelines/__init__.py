"""Whole jobs made of the two stages."""
