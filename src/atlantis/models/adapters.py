"""PEFT adapters on top of a model, so that it stays the model that the rest knows."""

import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from atlantis.errors import ModelError
from atlantis.models.sources import ADAPTER_WEIGHTS, Repository, first_line

_LAYERWISE = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA")
"""Adapters that change layers. Others change what the layers see, such as prompt tuning."""


def read_adapter_config(adapter: Repository) -> PeftConfig:
    """Read an adapter's configuration.

    Raises:
        ModelError: It is of a kind that lives outside of the model's layers.
    """
    try:
        config: Any = PeftConfig.from_pretrained(adapter.name, revision=adapter.revision)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{adapter.name}: not a usable adapter ({first_line(error)})") from None
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _LAYERWISE or getattr(config, "alora_invocation_tokens", None):
        raise ModelError(f"{adapter.name}: {kind} adapters are not supported; LoRA and its kin are")
    return config


def with_adapter(
    model: PreTrainedModel, adapter: Repository, *, config: PeftConfig
) -> PreTrainedModel:
    """Put an adapter on a model.

    It is merged into float32 weights, which is exact and costs nothing later. Into weights of lower
    precision it is not: what is smaller than their rounding would be lost.

    Raises:
        ModelError: The adapter is not for this architecture.
    """
    stored = _names(adapter)
    refusal = f"{adapter.name}: an adapter for another model than {model.name_or_path}"
    try:
        # PEFT warns of weights that the file lacks and is silent on those that the model lacks.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            wrapped: Any = PeftModel.from_pretrained(
                model, adapter.name, config=config, revision=adapter.revision
            )
        _check_names(wrapped, stored, refusal)
        is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
        return wrapped.merge_and_unload(safe_merge=True) if is_exact else wrapped.get_base_model()
    except ModelError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{refusal} ({first_line(error)})") from None


def _names(adapter: Repository) -> set[str]:
    """Names of the stored weights; pickled ones are never read."""
    try:
        path: Any = cached_file(adapter.name, ADAPTER_WEIGHTS, revision=adapter.revision)
        opened: Any = safe_open(path, framework="pt")
        with opened as weights:
            return set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{adapter.name}: not a usable adapter, no readable {ADAPTER_WEIGHTS} "
            f"({first_line(error)})"
        ) from None


def _check_names(wrapped: Any, stored: set[str], refusal: str) -> None:
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if missing := expected - stored:
        raise ModelError(f"{refusal}: it has no weights {min(missing)}")
    if unknown := stored - expected - set(wrapped.state_dict()):
        raise ModelError(f"{refusal}, which has no place for {min(unknown)}")
