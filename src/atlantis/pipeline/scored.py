"""Scores of rows under the model in a role."""

from collections.abc import Iterable, Mapping

from atlantis.models.loading import LoadingConfig
from atlantis.records import Row
from atlantis.scoring import stage as scoring
from atlantis.scoring.backends import ProxyBackend, TransformersBackend
from atlantis.scoring.stage import ScoringConfig, ScoringJob


def scoring_job(
    rows: Iterable[Row],
    role: str,
    models: Mapping[str, str],
    *,
    config: ScoringConfig,
    loading: LoadingConfig,
) -> ScoringJob:
    """What scores rows under ``large``, ``small``, ``reference``, or ``proxy``: all three as one.

    Args:
        rows: The rows.
        role: Whose scores.
        models: Name or folder of the models that it takes.
        config: What is scored.
        loading: How models are loaded.
    """
    if role == "proxy":
        backend = ProxyBackend(models["small"], models["reference"])
        return scoring.prepare(
            rows, models["large"], config=config, loading=loading, backend=backend
        )
    backend = TransformersBackend()
    return scoring.prepare(rows, models[role], config=config, loading=loading, backend=backend)
