"""Many runs: trajectories of weights, their topology, and which measures go with generalization."""
