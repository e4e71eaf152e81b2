"""vLLM's engine as a back end."""

from collections.abc import Generator as Opened
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from atlantis.data.rendering import chat_template
from atlantis.errors import ConfigError, ModelError
from atlantis.generation.backends import free_memory, local_fingerprint
from atlantis.generation.transformers_generator import stop_ids
from atlantis.generation.vllm_generator import VllmGenerator
from atlantis.models.loading import fingerprint_model, is_encoder_decoder, load_tokenizer
from atlantis.models.settings import DEFAULT, LoadingConfig
from atlantis.models.sources import read_config
from atlantis.models.vllm_engine import VllmEngine, vllm_version


@dataclass(frozen=True)
class VllmGeneration:
    """vLLM's engine in this process."""

    model: str
    """Folder or Hub name."""
    loading: LoadingConfig = DEFAULT
    chat_template: str | None = None
    """As in `TransformersGeneration`."""
    chunk_size: int = 512
    """Requests that vLLM is given at a time; a kill loses at most so many."""
    max_length: int | None = None
    """Most tokens of a prompt and its completion, where memory is too small for the model's."""

    def fingerprint(self) -> dict[str, Any]:
        """As transformers', and vLLM's version.

        Raises:
            ConfigError: vLLM is not installed, or cannot do what is asked of it.
        """
        found = vllm_version()
        _check(self.model, self.loading)
        return {
            "backend": "vllm",
            "models": {"model": fingerprint_model(self.model, self.loading)},
            "vllm": found,
            "max_length": self.max_length,
            **local_fingerprint(
                load_tokenizer(self.model, self.loading), self.loading, self.chat_template, None
            ),
        }

    @contextmanager
    def open(self) -> Opened[VllmGenerator]:
        """Start the engine."""
        _check(self.model, self.loading)
        tokenizer = load_tokenizer(self.model, self.loading)
        options: dict[str, Any] = {
            "enforce_eager": not torch.cuda.is_available(),  # a CPU compiles longer than it saves
            "max_model_len": self.max_length,
            "revision": self.loading.revision,
            "trust_remote_code": self.loading.trust_remote_code,
        }
        template = chat_template(tokenizer, self.chat_template)
        defaults = _generation_defaults(self.model, self.loading)
        engine = VllmEngine(self.model, self.loading, options)
        try:
            yield VllmGenerator(
                engine,
                tokenizer,
                template=template,
                stops=stop_ids(defaults, tokenizer, template),
                chunk_size=self.chunk_size,
            )
        finally:
            engine.close()
            free_memory()


def _check(model: str, loading: LoadingConfig) -> None:
    """Refuse what vLLM does not do here, before anything is loaded.

    Raises:
        ConfigError: A setting would have no effect.
        ModelError: The model cannot be found, or is an encoder-decoder.
    """
    for setting in ("adapter", "device_map", "quantization"):
        if getattr(loading, setting) is not None:
            raise ConfigError(
                f"{setting} {getattr(loading, setting)}: not with vLLM; "
                "use the transformers back end"
            )
    if is_encoder_decoder(model, loading):
        raise ModelError(f"{model}: has an encoder; vLLM completes with decoder-only models")


def _generation_defaults(model: str, loading: LoadingConfig) -> GenerationConfig:
    """As transformers has them: the checkpoint's own file, or what its configuration says."""
    try:
        return GenerationConfig.from_pretrained(model, revision=loading.revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(read_config(model, loading))
