"""The recipe: everything a run depends on, validated before anything expensive starts.

``labels`` has recipes about tasks with a closed set of labels, ``maths`` those about problems with
checkable answers, ``recipe_files`` reads either.
"""

from atlantis.config.labels import ArmConfig, RunConfig
from atlantis.config.maths import MathsRunConfig
from atlantis.config.recipe_files import Recipe, load_recipe, validate_recipe

__all__ = ["ArmConfig", "MathsRunConfig", "Recipe", "RunConfig", "load_recipe", "validate_recipe"]
