"""The whole chain as cached stages: data, reference, scores, weights, arms, comparison, report.

``inputs`` is what all stages draw on; ``weighing``, ``arms`` and ``results`` say which stages there
are, in the order of the work; ``check`` is the work of the check before training and ``tuning``
that of every fine-tuning; ``run`` decides which stages a recipe is for.
"""

from atlantis.pipeline.run import Pipeline

__all__ = ["Pipeline"]
