"""Which frozen models make a cache: one YAML file a profile."""
