"""Known model families: which small model and which tuned one go with a large one.

All models of a family share a tokenizer. A file of one's own adds to the list or replaces from it:

    my-family: {large: [ME/BIG], small: ME/SMALL, reference: ME/SMALL-TUNED}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from atlantis.errors import ConfigError
from atlantis.validation import validated


class Family(BaseModel):
    """Models of one tokenizer and kind of training data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    large: tuple[str, ...] = Field(min_length=1)
    """Base models that may be trained."""
    small: str
    """The smallest base model."""
    reference: str
    """The small model, tuned by its makers."""


class _Families(BaseModel):
    families: dict[str, Family]


KNOWN: Mapping[str, Family] = {
    "llama-2": Family(
        large=("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-70b-hf"),
        small="meta-llama/Llama-2-7b-hf",
        reference="meta-llama/Llama-2-7b-chat-hf",
    ),
    "llama-3": Family(
        large=("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"),
        small="meta-llama/Llama-3.2-1B",
        reference="meta-llama/Llama-3.2-1B-Instruct",
    ),
    "qwen2": Family(
        large=("Qwen/Qwen2-1.5B", "Qwen/Qwen2-7B", "Qwen/Qwen2-72B"),
        small="Qwen/Qwen2-0.5B",
        reference="Qwen/Qwen2-0.5B-Instruct",
    ),
    "qwen2.5": Family(
        large=(
            "Qwen/Qwen2.5-1.5B",
            "Qwen/Qwen2.5-3B",
            "Qwen/Qwen2.5-7B",
            "Qwen/Qwen2.5-14B",
            "Qwen/Qwen2.5-32B",
            "Qwen/Qwen2.5-72B",
        ),
        small="Qwen/Qwen2.5-0.5B",
        reference="Qwen/Qwen2.5-0.5B-Instruct",
    ),
    "qwen3": Family(
        large=(
            "Qwen/Qwen3-1.7B-Base",
            "Qwen/Qwen3-4B-Base",
            "Qwen/Qwen3-8B-Base",
            "Qwen/Qwen3-14B-Base",
        ),
        small="Qwen/Qwen3-0.6B-Base",
        reference="Qwen/Qwen3-0.6B",
    ),
    "gemma-2": Family(
        large=("google/gemma-2-9b", "google/gemma-2-27b"),
        small="google/gemma-2-2b",
        reference="google/gemma-2-2b-it",
    ),
    "gemma-3": Family(
        large=("google/gemma-3-4b-pt", "google/gemma-3-12b-pt", "google/gemma-3-27b-pt"),
        small="google/gemma-3-1b-pt",
        reference="google/gemma-3-1b-it",
    ),
    "olmo-2": Family(
        large=("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-1124-13B", "allenai/OLMo-2-0325-32B"),
        small="allenai/OLMo-2-0425-1B",
        reference="allenai/OLMo-2-0425-1B-Instruct",
    ),
    "smollm2": Family(
        large=("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-1.7B"),
        small="HuggingFaceTB/SmolLM2-135M",
        reference="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""By name. Names are those of the Hub."""


def families(path: Path | None = None) -> dict[str, Family]:
    """The known families, and those of a file.

    Args:
        path: YAML: a family's name to its ``large`` (a list), ``small`` and ``reference``. One that
            is known already is replaced.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    return dict(KNOWN) if path is None else {**KNOWN, **_read(path)}


def family_of(large: str, known: Mapping[str, Family]) -> str | None:
    """Name of the family that a large model is of; None where no family names it."""
    return next((name for name, family in known.items() if large in family.large), None)


def _read(path: Path) -> dict[str, Family]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of model families")
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: write NAME: {{large: [...], small: ..., reference: ...}}")
    return validated(_Families, {"families": found}, where=str(path)).families
