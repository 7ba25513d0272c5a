"""From files on disk to studies on one grid, and to aligned slices."""
