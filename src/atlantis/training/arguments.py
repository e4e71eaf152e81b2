"""`WeightedSFTConfig`: TRL's options and those of the weighted loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from atlantis.errors import ConfigError, WeightError
from atlantis.training.collation import Normaliser, check_weights
from atlantis.training.losses import Sft, TokenLoss, token_loss


@dataclass
class WeightedSFTConfig(SFTConfig):
    """`trl.SFTConfig`, how the weighted loss is normalised, and the loss of a token.

    ``loss_type`` is TRL's own: ``nll`` or ``dft``; ``token_loss`` knows more. All are multiplied by
    the weights.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "token_loss"]  # noqa: RUF012  # not a field

    loss_normaliser: str = field(
        default="token_mean",
        metadata={"help": "Normaliser of a step: token_mean, example_mean or sequence_sum."},
    )
    dft_floor: float = field(
        default=0.0, metadata={"help": "Smallest token probability used by the DFT factor."}
    )
    dft_beta: float = field(
        default=1.0, metadata={"help": "Power of the token probability in the DFT factor."}
    )
    dft_full_end_of_turn: bool = field(
        default=False,
        metadata={"help": "Train the end-of-turn token with factor one, so that DFT learns it."},
    )
    token_loss: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Loss of a token in place of loss_type: its name (sft, sft_kl, dft, asft, "
            'iw_sft, iw_sft_token, chord_phi, eaft, psft) and settings, as {"name": "eaft"}.'
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weighted_options(self)
        changed = (self.dft_floor, self.dft_beta, self.dft_full_end_of_turn) != (0.0, 1.0, False)
        if changed and self.loss_type != "dft":
            raise ConfigError(f"dft_* options have no effect with loss_type {self.loss_type!r}")
        if self.token_loss is not None and self.loss_type != "nll":
            raise ConfigError(f"token_loss replaces loss_type {self.loss_type!r}; give one of them")
        self.chosen_loss()
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy {self.packing_strategy!r} splits examples, so that a weight per "
                "example is no longer defined; use 'bfd'"
            )

    def chosen_loss(self) -> TokenLoss:
        """The loss of a token that the options ask for.

        Raises:
            ConfigError: ``token_loss`` has an unknown name or setting.
        """
        if self.token_loss is not None or self.loss_type != "dft":
            return chosen_token_loss(self.token_loss)
        return token_loss(
            {
                "name": "dft",
                "floor": self.dft_floor,
                "beta": self.dft_beta,
                "full_end_of_turn": self.dft_full_end_of_turn,
            }
        )


def check_weighted_options(args: Any) -> None:
    """Refuse options of a Trainer, and a normaliser, that a weighted loss is not defined for.

    Raises:
        ConfigError: There is such an option.
    """
    allowed = Normaliser.__args__  # pyright: ignore[reportAttributeAccessIssue]
    if args.loss_normaliser not in allowed:
        raise ConfigError(
            f"loss_normaliser {args.loss_normaliser!r}: choose one of {', '.join(allowed)}"
        )
    if args.label_smoothing_factor:
        raise ConfigError("label_smoothing_factor is not defined for a weighted loss; set it to 0")


def chosen_token_loss(settings: Mapping[str, Any] | str | None) -> TokenLoss:
    """The loss of a token, from its name or its name and settings; plain SFT by default.

    Raises:
        ConfigError: An unknown name or setting.
    """
    if settings is None:
        return Sft()
    return token_loss({"name": settings} if isinstance(settings, str) else settings)


def require_weights(dataset: Any, *, stock: str) -> None:
    """Refuse a training set without usable weights.

    Args:
        dataset: What was given as the training set.
        stock: The trainer for those who want none.

    Raises:
        ConfigError: It is no `datasets.Dataset`.
        WeightError: It has no weights, or unusable ones.
    """
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"train_dataset must be a datasets.Dataset, got {type(dataset).__name__}; "
            "streaming data sets are not supported with weights"
        )
    if "token_weights" in dataset.column_names:
        check_weights([w for row in dataset["token_weights"] for w in row])
    elif "weight" in dataset.column_names:
        check_weights(dataset["weight"][:])
    else:
        raise WeightError(
            f"train_dataset has no column 'weight' (it has {', '.join(dataset.column_names)}); "
            f"add one, or use {stock} for unweighted training"
        )


def refuse_options(given: dict[str, Any], names: tuple[str, ...], *, trainer: str) -> None:
    """Refuse arguments of a trainer that it has no use for.

    Raises:
        ConfigError: One of ``names`` is given.
    """
    for name in names:
        if given.get(name) is not None:
            raise ConfigError(f"{name} cannot be combined with {trainer}, which has its own")


def refuse_parallelism(accelerator: Any) -> None:
    """Refuse to spread the tokens of a row over devices.

    Raises:
        ConfigError: Context or sequence parallelism is on.
    """
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ConfigError("weights are not sharded by context or sequence parallelism; turn it off")
