"""How a model is put into memory."""

import importlib.util
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from atlantis.errors import ModelError


class LoadingConfig(BaseModel):
    """How a model is put into memory."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and activations. Log-probabilities are float32 in any case."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one; or a torch device: ``cpu``, ``cuda:1``."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spreads one model over several GPUs and, where they are full, main memory (accelerate)."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers; ``auto`` takes what the architecture prefers."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Weights in 4 (NF4) or 8 bits, computed with in ``dtype``; needs bitsandbytes."""
    revision: str | None = None
    """Commit, branch or tag of a model on the Hub."""
    adapter: str | None = None
    """A PEFT adapter on top of the model: a folder or a Hub name."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. It can do anything that you can."""

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        try:
            torch.device("cpu" if name == "auto" else name)
        except RuntimeError:
            raise ValueError("choose auto, cpu, cuda or cuda:N") from None
        return name

    @model_validator(mode="after")
    def _has_one_placement(self) -> Self:
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"device_map places the model; leave out device {self.device!r}")
        return self

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return getattr(torch, self.dtype)

    @property
    def torch_device(self) -> torch.device:
        """The device, with ``auto`` resolved.

        Raises:
            ModelError: The device is a GPU that is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ModelError(f"device {self.device}: no such GPU here; choose cpu or auto")
        return device

    def check_here(self) -> None:
        """Refuse what this machine cannot do, before anything is read.

        Raises:
            ModelError: There is no such GPU, or no bitsandbytes.
        """
        _ = self.torch_device
        if self.quantization and importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(
                f"quantization {self.quantization} needs bitsandbytes; "
                "pip install 'atlantis-sft[quantized]'"
            )


DEFAULT = LoadingConfig()
"""A whole model in float32."""
