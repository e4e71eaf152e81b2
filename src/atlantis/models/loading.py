"""Models by folder or Hub name: found and fingerprinted before anything is loaded."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from atlantis.errors import ModelError
from atlantis.store import digest_file

_HASHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What decides a model's numbers. Pickled weights (``*.bin``) are not read at all."""
_TOKENIZER = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Without any of these, transformers makes up a tokenizer with no vocabulary."""


class LoadingConfig(BaseModel):
    """How a model is put into memory."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and activations. Log-probabilities are float32 in any case."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one; or a torch device: ``cpu``, ``cuda:1``."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers; ``auto`` takes what the architecture prefers."""

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        try:
            torch.device("cpu" if name == "auto" else name)
        except RuntimeError:
            raise ValueError("choose auto, cpu, cuda or cuda:N") from None
        return name

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


def fingerprint_model(name: str) -> dict[str, str]:
    """What identifies a model: file hashes for a folder, the commit for a Hub name.

    Nothing is loaded, and for a Hub name nothing but metadata is fetched.

    Raises:
        ModelError: There is no such model.
    """
    files = _model_files(name)
    if files is not None:
        return {path.name: digest_file(path) for path in files}
    commit: Any = getattr(_load_config(name), "_commit_hash")  # noqa: B009 - no public name for it
    return {"hub": name, "commit": str(commit)}


def check_decoder_only(name: str) -> None:
    """Refuse what is not a causal language model, from its file names and configuration alone.

    Raises:
        ModelError: There is no such model, it is an encoder-decoder, or its configuration cannot be
            read.
    """
    _model_files(name)
    if _load_config(name).is_encoder_decoder:
        raise ModelError(
            f"{name} is an encoder-decoder model; only decoder-only models work so far"
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; remote code is never run.

    Raises:
        ModelError: There is no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name}: no usable tokenizer ({_first_line(error)})") from None


def load_model(name: str, config: LoadingConfig) -> PreTrainedModel:
    """Load a causal language model in evaluation mode; remote code is never run.

    Raises:
        ModelError: The weights cannot be read, or some that the architecture has are not there.
    """
    device = config.torch_device
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=config.torch_dtype,
            attn_implementation=None if config.attention == "auto" else config.attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{name}: cannot be loaded ({_first_line(error)})") from None
    model, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(
            f"{name}: not a causal language model, it has no weights {min(info['missing_keys'])}"
        )
    return model.to(device).eval()


def _model_files(name: str) -> list[Path] | None:
    """The files of a model in a folder; None for a Hub name."""
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise ModelError(f"{name}: no such folder")
        return None
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a model, it has no config.json")
    files = sorted(path for pattern in _HASHED for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(f"{folder}: not a usable model, it has no *.safetensors weights")
    if not any(path for pattern in _TOKENIZER for path in folder.glob(pattern)):
        raise ModelError(f"{folder}: not a usable model, it has no tokenizer; save it there too")
    return files


def _load_config(name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: neither a folder with a model nor a model on the Hub ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
