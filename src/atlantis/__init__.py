"""Importance-weighted supervised fine-tuning: score, weigh, train, compare.

The names below are the public API; everything else may move. They are imported when they are first
used, so that ``import atlantis`` and ``atlantis --help`` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlantis.api import score, score_models, select, weigh
    from atlantis.models.proxy import ProxyTunedLM
    from atlantis.records import Example
    from atlantis.store import ScoreStore
    from atlantis.training.joining import join_weights
    from atlantis.training.seq2seq import WeightedSeq2SeqConfig, WeightedSeq2SeqTrainer
    from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer
    from atlantis.weighting.stage import Weights

    __version__: str

__all__ = [
    "Example",
    "ProxyTunedLM",
    "ScoreStore",
    "WeightedSFTConfig",
    "WeightedSFTTrainer",
    "WeightedSeq2SeqConfig",
    "WeightedSeq2SeqTrainer",
    "Weights",
    "__version__",
    "join_weights",
    "score",
    "score_models",
    "select",
    "weigh",
]

_HOMES = {
    "Example": "atlantis.records",
    "ProxyTunedLM": "atlantis.models.proxy",
    "ScoreStore": "atlantis.store",
    "WeightedSFTConfig": "atlantis.training.trainers",
    "WeightedSFTTrainer": "atlantis.training.trainers",
    "WeightedSeq2SeqConfig": "atlantis.training.seq2seq",
    "WeightedSeq2SeqTrainer": "atlantis.training.seq2seq",
    "Weights": "atlantis.weighting.stage",
    "join_weights": "atlantis.training.joining",
    "score": "atlantis.api",
    "score_models": "atlantis.api",
    "select": "atlantis.api",
    "weigh": "atlantis.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("atlantis-sft")
    if name not in _HOMES:
        raise AttributeError(f"module 'atlantis' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
