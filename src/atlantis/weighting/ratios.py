"""Schemes that make log-weights out of the models' log-probabilities.

They differ in which models they combine, and METHODS in the papers disagree on that: see
``docs/paper_index.md``.
"""

from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlantis.numerics.importance import combine, length_power

Floats = NDArray[np.float64]


class ModelScores(NamedTuple):
    """Sequence log-probabilities of the same completions under up to three models."""

    large: Floats | None
    reference: Floats | None
    small: Floats | None
    num_tokens: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    labels: NDArray[np.intp] | None = None
    """Number of each example's class, where classes are known."""
    proxy: Floats | None = None
    """Under the large model moved by the other two: their normalised product."""


class Settings(BaseModel):
    """Frozen settings; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Linear(Settings):
    """``log w = (c_L S_L + c_r S_r + c_S S_S) / n ** alpha``."""

    alpha: float = Field(default=1.0, ge=0.0, le=2.0)
    """Power of the completion's length: 1 is the geometric mean per token, 0 the sequence
    probability (on long completions one example then takes all the weight), 0.5 between."""
    unit: Literal["token", "byte"] = "token"
    """What length is counted in. Bytes compare models with different tokenizers."""

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """``(c_large, c_reference, c_small)``."""
        raise NotImplementedError

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have to be scored."""
        names = ("large", "reference", "small")
        return tuple(n for n, c in zip(names, self.coefficients, strict=True) if c != 0)

    @property
    def compares_tokens(self) -> bool:
        """Whether the models have to split a completion into the same tokens."""
        return self.unit == "token" and self.alpha > 0

    def log_weights(self, scores: ModelScores) -> Floats:
        combined = combine(
            large=scores.large,
            reference=scores.reference,
            small=scores.small,
            coefficients=self.coefficients,
        )
        lengths = scores.num_tokens if self.unit == "token" else scores.num_bytes
        return length_power(combined, lengths, alpha=self.alpha)


class Influence(_Linear):
    """``p_r / p_S``: ATLANTIS Eq. 8, Figures 2 and 4, ATLANTIS-cross."""

    kind: Literal["influence"] = "influence"

    @property
    def coefficients(self) -> tuple[float, float, float]:
        return (0.0, 1.0, -1.0)


class Algorithm1(_Linear):
    """``p_L p_r / p_S``: ATLANTIS Algorithm 1 as printed."""

    kind: Literal["algorithm1"] = "algorithm1"

    @property
    def coefficients(self) -> tuple[float, float, float]:
        return (1.0, 1.0, -1.0)


class Ratio(_Linear):
    """``p_L / p_S``: ATLANTIS Eq. 7, for data drawn from the reference."""

    kind: Literal["ratio"] = "ratio"

    @property
    def coefficients(self) -> tuple[float, float, float]:
        return (1.0, 0.0, -1.0)


class Proxy(Settings):
    """``p_L p_r / p_S / Z``: Algorithm 1's weight with the target distribution normalised.

    ``Z`` is taken at every token over the whole vocabulary, so that it is the probability of the
    completion under the proxy-tuned model, which has to be scored as such.
    """

    kind: Literal["proxy"] = "proxy"
    alpha: float = Field(default=1.0, ge=0.0, le=2.0)
    """Power of the completion's length, as in the other schemes."""
    unit: Literal["token", "byte"] = "token"
    """What length is counted in."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have to be scored."""
        return ("proxy",)

    @property
    def compares_tokens(self) -> bool:
        """Whether the models have to split a completion into the same tokens: there is one."""
        return False

    def log_weights(self, scores: ModelScores) -> Floats:
        assert scores.proxy is not None  # `models`
        lengths = scores.num_tokens if self.unit == "token" else scores.num_bytes
        return length_power(scores.proxy, lengths, alpha=self.alpha)


class Custom(_Linear):
    """Your own coefficients."""

    kind: Literal["custom"] = "custom"
    large: float = 0.0
    """Coefficient of the large model's log-probability."""
    reference: float = 0.0
    """Coefficient of the reference model's log-probability."""
    small: float = 0.0
    """Coefficient of the small model's log-probability."""

    @model_validator(mode="after")
    def _some_model_counts(self) -> Self:
        if not any(self.coefficients):
            raise ValueError("give a coefficient for large, reference or small")
        return self

    @property
    def coefficients(self) -> tuple[float, float, float]:
        return (self.large, self.reference, self.small)


class LossRatio(Settings):
    """``nll_S / nll_r`` of the means per token: a common reading of Figure 2."""

    kind: Literal["loss_ratio"] = "loss_ratio"

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have to be scored."""
        return ("reference", "small")

    @property
    def compares_tokens(self) -> bool:
        """Whether the models have to split a completion into the same tokens: means do."""
        return True

    def log_weights(self, scores: ModelScores) -> Floats:
        if scores.reference is None or scores.small is None:
            raise ValueError("loss_ratio needs the reference and the small model's scores")
        # Both means are over the same tokens, so the lengths cancel.
        with np.errstate(divide="ignore", invalid="ignore"):  # nll 0 of a certain completion
            return np.log(-scores.small) - np.log(-scores.reference)


class Uniform(Settings):
    """Every example weighs one: plain supervised fine-tuning."""

    kind: Literal["uniform"] = "uniform"

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have to be scored: none."""
        return ()

    @property
    def compares_tokens(self) -> bool:
        """Whether the models have to split a completion into the same tokens."""
        return False

    def log_weights(self, scores: ModelScores) -> Floats:
        return np.zeros(scores.num_tokens.size)
