"""The frozen models' weights: where they are published, how they are fetched, checked and read."""
