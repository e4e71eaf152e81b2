"""Loading models, and their output heads."""
