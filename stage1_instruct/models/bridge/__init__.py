"""Vision features become image tokens (the projection f_vt and its alternatives)."""
