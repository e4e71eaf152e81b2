"""Which rows to train on: instruction-following difficulty, weights, baselines."""
