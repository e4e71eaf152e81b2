"""Scores to one weight per example."""
