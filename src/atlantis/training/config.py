"""Hyperparameters of one fine-tuning, as recipes and commands give them."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from atlantis.training.collation import Normaliser
from atlantis.training.losses import Sft, TokenLoss

_FEWEST_STEPS = 50
"""Between checkpoints, unless told: where a tenth of the training is over in seconds."""


class LoraSettings(BaseModel):
    """Low-rank adapters instead of full fine-tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the update, over the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter; ``lm_head`` cannot."""


def _named(value: Any) -> Any:
    """A bare name stands for a loss with its defaults."""
    if not isinstance(value, str):
        return value
    return {"name": "sft" if value == "nll" else value}


Loss = Annotated[TokenLoss, BeforeValidator(_named)]
"""The loss of a token: a name (``sft``, ``dft``, ``asft``, ``iw_sft``, ...), or a mapping with the
name and what differs from its defaults."""


class TrainingConfig(BaseModel):
    """Hyperparameters of one fine-tuning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=2.0, gt=0.0)
    """Passes over the training rows. All arms of a recipe take the steps of the noisy rows."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per forward pass and device."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps with a rising learning rate."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Learning rate after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay."""
    adam_beta2: float = Field(default=0.999, gt=0.0, lt=1.0)
    """AdamW's decay of the mean squared gradient; 0.95 is usual for large models."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this norm."""
    loss: Loss = Sft()
    """Loss of a token, by its name or as a mapping with the name and its settings."""
    loss_normaliser: Normaliser = "token_mean"
    """What a step's sum is divided by: trained tokens, or examples."""
    group_by_length: bool = True
    """Batch rows of similar length together: less padding."""
    bf16: bool = False
    """Compute in bfloat16 over float32 weights (GPU)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    lora: LoraSettings | None = None
    """Train adapters only; they are merged into the saved model."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Keep the frozen weights under the adapters in few bits (QLoRA). The adapters are saved by
    themselves: merged into weights of few bits they would be another model."""
    checkpoint_steps: PositiveInt | Literal["auto", "never"] = "auto"
    """Steps between checkpoints, from which a killed training goes on; by default a tenth of all,
    and at least 50. They change nothing in the trained model, and are deleted with the last step.
    """
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where losses and metrics are also shown while training. TensorBoard reads ``OUT.logs``."""

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> Self:
        if self.quantization is not None and self.lora is None:
            raise ValueError("quantization freezes the model's weights: train adapters, give lora")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What a trained model depends on, JSON."""
        return self.model_dump(mode="json", exclude={"checkpoint_steps", "report_to"})

    def steps_between_checkpoints(self, num_steps: int) -> int | None:
        """Every how many of so many steps a checkpoint is due; None for never."""
        if self.checkpoint_steps == "never":
            return None
        if self.checkpoint_steps == "auto":
            return max(_FEWEST_STEPS, math.ceil(num_steps / 10))
        return self.checkpoint_steps

    def num_steps(self, num_rows: int, *, num_processes: int = 1) -> int:
        """Optimizer steps that the epochs take over so many rows, on a device for each process."""
        rows_of_step = self.batch_size * self.gradient_accumulation * num_processes
        return math.ceil(self.epochs * num_rows / rows_of_step)
