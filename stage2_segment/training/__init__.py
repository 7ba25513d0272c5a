"""How weights are found: the loop, one run in it, losses, schedule, processes."""
