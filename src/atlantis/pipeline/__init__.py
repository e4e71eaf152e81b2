"""The whole chain as cached stages: data, reference, scores, weights, arms, comparison, report.

``inputs`` is what all stages draw on; ``weighing``, ``arms`` and ``results`` say which stages there
are, in the order of the work; ``check`` is the work of the check before training and ``tuning``
that of every fine-tuning; ``run`` decides which stages a recipe is for. ``maths`` has all of it for
recipes about maths problems.
"""

from pathlib import Path

from atlantis.config import MathsRunConfig, Recipe
from atlantis.pipeline.maths import MathsPipeline
from atlantis.pipeline.run import Pipeline

AnyPipeline = Pipeline | MathsPipeline


def pipeline_of(recipe: Recipe, out: Path, *, force: bool = False) -> AnyPipeline:
    """The stages of a recipe in the folder ``out``.

    Args:
        recipe: A recipe of either kind.
        out: The run's folder.
        force: Train with weights that are likely to do harm, too.

    Raises:
        InputError: The data or the models of the recipe are not usable.
    """
    if isinstance(recipe, MathsRunConfig):
        return MathsPipeline(recipe, out)
    return Pipeline(recipe, out, force=force)


__all__ = ["AnyPipeline", "MathsPipeline", "Pipeline", "pipeline_of"]
