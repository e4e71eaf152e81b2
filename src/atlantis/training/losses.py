"""The token losses that `WeightedSFTTrainer` knows, each a small class with its settings.

A variant turns one batch of log-probabilities into a loss per token; weights, mask and normaliser
come afterwards and are the same for all, so that every variant combines with every weighting.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from atlantis.errors import ConfigError
from atlantis.numerics.losses import (
    chord_phi_factors,
    dft_factors,
    entropy_factors,
    iw_sequence_factors,
    iw_token_factors,
    psft_losses,
    two_outcome_kl_losses,
)
from atlantis.validation import validated

REFERENCE = "reference_logprobs"
BASE = "base_logprobs"
OLD = "old_logprobs"


class TokenBatch(NamedTuple):
    """What a loss may look at. All tensors are ``[batch, token]``, over the next tokens."""

    logprobs: Tensor
    """Under the model being trained, with its gradient; zero where ``mask`` is False."""
    mask: Tensor
    """True where a token is trained on."""
    example_index: Tensor
    """Number of the token's example: a row of the batch, or a part of a packed row."""
    is_end_of_turn: Tensor
    """True where the token ends a turn."""
    stored: Mapping[str, Tensor]
    """Log-probabilities under other models, by column; NaN where a token was not scored."""
    entropy: Tensor | None = None
    """`numerics.losses.top_entropy` of the predictions, if the loss asks for it."""


class _Variant(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the data set that the loss reads, aligned with ``input_ids``."""

    @property
    def num_entropy_tokens(self) -> int:
        """Tokens that the entropy is over; 0 if the loss does not look at it."""
        return 0

    @property
    def num_window_steps(self) -> int:
        """Optimizer steps that share one old policy; 0 if the loss has none."""
        return 0

    def token_losses(self, batch: TokenBatch) -> Tensor:
        """Loss of each token, ``[batch, token]``, differentiable; any value where it is masked."""
        raise NotImplementedError


class Sft(_Variant):
    """Plain negative log-likelihood."""

    name: Literal["sft"] = "sft"

    def token_losses(self, batch: TokenBatch) -> Tensor:
        return -batch.logprobs


class SftKl(_Variant):
    """``nll + kl_weight * KL(base || theta)``, see `numerics.losses.two_outcome_kl_losses`."""

    name: Literal["sft_kl"] = "sft_kl"
    kl_weight: float = Field(default=0.05, gt=0.0)
    """Weight of the divergence from the base model."""

    columns: ClassVar[tuple[str, ...]] = (BASE,)

    def token_losses(self, batch: TokenBatch) -> Tensor:
        kl = two_outcome_kl_losses(batch.logprobs, batch.stored[BASE])
        return -batch.logprobs + self.kl_weight * kl


class _Probability(_Variant):
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest probability used."""
    beta: float = Field(default=1.0, ge=0.0)
    """Power of the probability."""
    full_end_of_turn: bool = False
    """Train the end-of-turn token with factor one, so that it is learnt."""

    def token_losses(self, batch: TokenBatch) -> Tensor:
        full = batch.is_end_of_turn if self.full_end_of_turn else None
        factors = dft_factors(batch.logprobs, floor=self.floor, beta=self.beta, full_weight=full)
        return -factors * batch.logprobs


class Dft(_Probability):
    """Dynamic fine-tuning and the p^beta family, see `numerics.losses.dft_factors`."""

    name: Literal["dft"] = "dft"


class Asft(_Probability):
    """Anchored SFT: DFT plus ``kl_weight * KL(base || theta)`` (arXiv 2509.23753).

    The paper's divergence is over the whole vocabulary; ours is over two outcomes, from the stored
    log-probabilities of the targets, see `numerics.losses.two_outcome_kl_losses`.
    """

    name: Literal["asft"] = "asft"
    kl_weight: float = Field(default=0.05, gt=0.0)
    """Weight of the divergence from the base model; the paper takes 0.05 to 0.1."""

    columns: ClassVar[tuple[str, ...]] = (BASE,)

    def token_losses(self, batch: TokenBatch) -> Tensor:
        kl = two_outcome_kl_losses(batch.logprobs, batch.stored[BASE])
        return super().token_losses(batch) + self.kl_weight * kl


class _Ratio(_Variant):
    low: float = Field(ge=0.0)
    """Smallest factor."""
    high: float = Field(gt=0.0)
    """Largest factor."""

    columns: ClassVar[tuple[str, ...]] = (REFERENCE,)

    @model_validator(mode="after")
    def _bounds_have_an_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        return self


class IwSft(_Ratio):
    """iw-SFT with a factor per example, see `numerics.losses.iw_sequence_factors`."""

    name: Literal["iw_sft"] = "iw_sft"
    temperature: float = Field(default=1.0, gt=0.0)
    """Factor of the mean log-ratio to the reference."""
    low: float = Field(default=0.0, ge=0.0)
    """Smallest factor."""
    high: float = Field(default=16.0, gt=0.0)
    """Largest factor."""

    def token_losses(self, batch: TokenBatch) -> Tensor:
        factors = iw_sequence_factors(
            batch.logprobs,
            batch.stored[REFERENCE],
            batch.mask,
            batch.example_index,
            temperature=self.temperature,
            low=self.low,
            high=self.high,
        )
        return -factors * batch.logprobs


class IwSftToken(_Ratio):
    """iw-SFT with a factor per token, see `numerics.losses.iw_token_factors`."""

    name: Literal["iw_sft_token"] = "iw_sft_token"
    low: float = Field(default=0.2, ge=0.0)
    """Smallest factor."""
    high: float = Field(default=1.8, gt=0.0)
    """Largest factor."""

    def token_losses(self, batch: TokenBatch) -> Tensor:
        factors = iw_token_factors(
            batch.logprobs, batch.stored[REFERENCE], low=self.low, high=self.high
        )
        return -factors * batch.logprobs


class ChordPhi(_Variant):
    """CHORD's supervised part, see `numerics.losses.chord_phi_factors`."""

    name: Literal["chord_phi"] = "chord_phi"

    def token_losses(self, batch: TokenBatch) -> Tensor:
        return -chord_phi_factors(batch.logprobs) * batch.logprobs


class Eaft(_Variant):
    """Entropy-adaptive fine-tuning, see `numerics.losses.entropy_factors`."""

    name: Literal["eaft"] = "eaft"
    top_k: int = Field(default=20, ge=2)
    """Likeliest tokens that the entropy is over."""
    power: float = Field(default=1.0, ge=0.0)
    """Power of the entropy, as a share of its maximum."""

    @property
    def num_entropy_tokens(self) -> int:
        return self.top_k

    def token_losses(self, batch: TokenBatch) -> Tensor:
        assert batch.entropy is not None
        factors = entropy_factors(batch.entropy, k=self.top_k, power=self.power)
        return -factors * batch.logprobs


class Psft(_Variant):
    """Proximal SFT, see `numerics.losses.psft_losses`.

    The old policy's log-probabilities are computed at the start of a window of steps, for all its
    batches: one more forward pass per example. Windows start with each epoch and anew when a run is
    resumed. An evaluation batch is a window of its own: its ratios are one.
    """

    name: Literal["psft"] = "psft"
    clip: float = Field(default=0.28, gt=0.0)
    """A token ``1 + clip`` times as likely as at the window's start gives no gradient."""
    window_steps: int = Field(default=8, ge=2)
    """Optimizer steps of a window; in a window of one step every ratio is one."""

    @property
    def num_window_steps(self) -> int:
        return self.window_steps

    def token_losses(self, batch: TokenBatch) -> Tensor:
        return psft_losses(batch.logprobs, batch.stored[OLD], clip=self.clip)


TokenLoss = Annotated[
    Sft | SftKl | Dft | Asft | IwSft | IwSftToken | ChordPhi | Eaft | Psft,
    Field(discriminator="name"),
]
"""Any of the losses, told apart by ``name``."""


SCORE_OPTIONS = {REFERENCE: "reference scores", BASE: "base scores"}
"""What each column of log-probabilities is called to people."""


def check_scores(loss: TokenLoss, given: Collection[str]) -> None:
    """Refuse scores that a loss does not look at, and a loss without those that it needs.

    Args:
        loss: The loss of a token.
        given: Columns that there are scores for.

    Raises:
        ConfigError: They are not the ones that it reads.
    """
    for column in loss.columns:
        if column not in given:
            what = SCORE_OPTIONS[column]
            raise ConfigError(f"loss {loss.name} needs {what}: a score store of the same rows")
    for column in given:
        if column not in loss.columns:
            what = SCORE_OPTIONS[column]
            raise ConfigError(f"loss {loss.name} does not look at {what}; leave them out")


class _Choice(BaseModel):
    token_loss: TokenLoss


def token_loss(settings: Mapping[str, Any]) -> TokenLoss:
    """The loss that ``settings`` describe: its ``name`` and what differs from its defaults.

    Raises:
        ConfigError: An unknown name or setting, or a value out of bounds.
    """
    return validated(_Choice, {"token_loss": dict(settings)}, where="token_loss").token_loss
