"""One question of a model each: the problem, its budget, and the runs that measure it."""
