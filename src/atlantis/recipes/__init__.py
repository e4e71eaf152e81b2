"""Recipes: one YAML file per experiment. No code lives here."""
