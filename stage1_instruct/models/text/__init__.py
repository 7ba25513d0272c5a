"""An instruction becomes a vector."""
