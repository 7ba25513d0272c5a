"""New studies through both stages: mask, volumes and texts."""
