"""Examples to per-token log-probabilities under one model, on disk and resumable."""
