"""Ways of turning the models' log-probabilities into weights.

A scheme is a frozen config with one pure method, so that choosing it and applying it are the same
object. Here are those that are made from other schemes, and what follows a scheme.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from atlantis.weighting.ratios import (
    Algorithm1,
    Custom,
    Floats,
    Influence,
    LossRatio,
    ModelScores,
    Proxy,
    Ratio,
    Settings,
    Uniform,
)


def _by_name(value: Any) -> Any:
    """A bare name stands for the scheme of that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


BasicScheme = Annotated[
    Influence | Algorithm1 | Proxy | Ratio | Custom | LossRatio | Uniform,
    Field(discriminator="kind"),
]


class _Derived(Settings):
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
    within: Literal["none", "label"] = "none"
    """Rank all examples together, which can drop whole classes, or those of each label on their
    own: the share is then that of every label, whose highest-weighted example always stays."""

    def log_weights(self, scores: ModelScores) -> Floats:
        weights = self.of.log_weights(scores)
        groups = np.zeros(weights.size, dtype=np.intp) if self.within == "none" else scores.labels
        if groups is None:
            raise ValueError("within 'label' needs the examples' labels")
        order = np.lexsort((weights, groups))  # stable
        _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
        num_dropped = np.round(self.fraction * sizes)
        if self.within == "label":
            num_dropped = np.minimum(num_dropped, sizes - 1)
        ranks = np.arange(weights.size) - np.repeat(starts, sizes)
        result = np.zeros(weights.size)
        result[order[ranks < np.repeat(num_dropped, sizes)]] = -np.inf
        return result

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``within`` at its default: weights from before it was there stay valid."""
        settings: dict[str, Any] = handler(self)
        return {name: v for name, v in settings.items() if (name, v) != ("within", "none")}


Scheme = Annotated[
    Influence | Algorithm1 | Proxy | Ratio | Custom | LossRatio | Uniform | Shuffled | DropLowest,
    Field(discriminator="kind"),
]


class ClipAroundMedian(Settings):
    """Keep weights within a factor of the median weight, before normalising."""

    kind: Literal["around_median"] = "around_median"
    factor: float = Field(gt=1.0)
    """Largest ratio to the median, in both directions."""


class ClipAfterMeanOne(Settings):
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


class WeightingConfig(Settings):
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

    @property
    def compares_within_label(self) -> bool:
        """Whether an example's weight is only compared with those of the same label."""
        ranked = isinstance(self.scheme, DropLowest) and self.scheme.within == "label"
        return ranked or self.normalise_within == "label"

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
