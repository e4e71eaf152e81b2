"""Recipes: one YAML file per experiment, and the list of them. No other code lives here."""

from importlib import resources
from pathlib import Path


def builtin_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    folder = Path(str(resources.files("atlantis.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
