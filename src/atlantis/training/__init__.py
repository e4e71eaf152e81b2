"""Examples and weights to a checkpoint."""
