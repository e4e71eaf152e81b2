"""Ways of turning the models' log-probabilities into log-weights.

A scheme is a frozen config with one pure method, so that choosing it and applying it are the same
object. The schemes differ in which models they combine, and METHODS in the papers disagree on that:
see ``docs/paper_index.md``.
"""

from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from atlantis.numerics.importance import combine, length_power

Floats = NDArray[np.float64]


class ModelScores(NamedTuple):
    """Sequence log-probabilities of the same completions under up to three models."""

    large: Floats | None
    reference: Floats | None
    small: Floats | None
    num_tokens: NDArray[np.int64]
    num_bytes: NDArray[np.int64]


class _Config(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Linear(_Config):
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


class LossRatio(_Config):
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


class Uniform(_Config):
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


def _by_name(value: Any) -> Any:
    """A bare name stands for the scheme of that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


BasicScheme = Annotated[
    Influence | Algorithm1 | Ratio | Custom | LossRatio | Uniform, Field(discriminator="kind")
]


class _Derived(_Config):
    of: Annotated[BasicScheme, BeforeValidator(_by_name)] = Influence()
    """The scheme whose weights are used."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have to be scored."""
        return self.of.models

    @property
    def compares_tokens(self) -> bool:
        """Whether the models have to split a completion into the same tokens."""
        return self.of.compares_tokens


class Shuffled(_Derived):
    """Another scheme's weights, permuted: the control for what uneven weights alone do."""

    kind: Literal["shuffled"] = "shuffled"
    seed: int = 0
    """Seed of the permutation."""

    def log_weights(self, scores: ModelScores) -> Floats:
        weights = self.of.log_weights(scores)
        return np.random.default_rng(self.seed).permutation(weights)


class DropLowest(_Derived):
    """Weight zero for the lowest-weighted share, one for the rest: a selection."""

    kind: Literal["drop_lowest"] = "drop_lowest"
    fraction: float = Field(gt=0.0, lt=1.0)
    """Share of the examples that is dropped, rounded to whole examples; ties in order of id."""

    def log_weights(self, scores: ModelScores) -> Floats:
        weights = self.of.log_weights(scores)
        lowest = np.argsort(weights, kind="stable")[: round(self.fraction * weights.size)]
        result = np.zeros(weights.size)
        result[lowest] = -np.inf
        return result


Scheme = Annotated[
    Influence | Algorithm1 | Ratio | Custom | LossRatio | Uniform | Shuffled | DropLowest,
    Field(discriminator="kind"),
]


class ClipAroundMedian(_Config):
    """Keep weights within a factor of the median weight, before normalising."""

    kind: Literal["around_median"] = "around_median"
    factor: float = Field(gt=1.0)
    """Largest ratio to the median, in both directions."""


class ClipAfterMeanOne(_Config):
    """Clip to absolute bounds after normalising to mean one, then normalise again."""

    kind: Literal["after_mean_one"] = "after_mean_one"
    low: float = Field(ge=0.0)
    """Smallest mean-one weight."""
    high: float = Field(gt=0.0)
    """Largest mean-one weight."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


Clip = Annotated[ClipAroundMedian | ClipAfterMeanOne, Field(discriminator="kind")]


class WeightingConfig(_Config):
    """From scores to weights. The steps always run in the order of the fields."""

    scheme: Annotated[Scheme, BeforeValidator(_by_name)] = Influence()
    """How the models' log-probabilities are combined."""
    kappa: float = Field(default=1.0, gt=0.0)
    """Power of the weights: over 1 sharpens, under 1 flattens."""
    min_ess_fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """Temper: use the largest power up to ``kappa`` that keeps ESS/N at this or above."""
    clip: Clip | None = None
    """Bounds of the weights; none by default."""
    pareto_smooth: bool = False
    """Pareto-smooth the largest weights instead of clipping them."""
    normalise_within: Literal["none", "label", "length_decile"] = "none"
    """Mean one inside each group, so that weighting does not shift the mix of the groups."""

    @model_validator(mode="after")
    def _tail_is_treated_once(self) -> Self:
        if self.pareto_smooth and self.clip is not None:
            raise ValueError("pareto_smooth and clip both treat the tail; choose one")
        if isinstance(self.scheme, DropLowest) and self.clip is not None:
            raise ValueError("a clip would lift the dropped rows again; remove it")
        return self


PRESETS: dict[str, WeightingConfig] = {
    # The relation-extraction report of 2025: sequence probabilities, mean one, clip, mean one.
    "report2025": WeightingConfig(
        scheme=Algorithm1(alpha=0.0), clip=ClipAfterMeanOne(low=0.1, high=5.0)
    ),
}


def _by_preset(value: Any) -> Any:
    """A bare name stands for a preset, or for a scheme with everything else at its default."""
    if not isinstance(value, str):
        return value
    return PRESETS[value].model_dump() if value in PRESETS else {"scheme": value}


Weighting = Annotated[WeightingConfig, BeforeValidator(_by_preset)]
"""A `WeightingConfig`, or the name of a preset or a scheme."""
