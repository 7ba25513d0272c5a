"""How good a run is, and what it listens to."""
