"""What completes prompts: transformers here, a server elsewhere, or vLLM here.

A back end says what its texts depend on before anything is loaded, and opens a generator when there
is a prompt to complete.
"""

import gc
from collections.abc import Callable
from collections.abc import Generator as Opened
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from atlantis.data.rendering import chat_template
from atlantis.disk import digest_json
from atlantis.endpoint import Endpoint
from atlantis.generation.requests import Generator
from atlantis.generation.server_generator import ServerGenerator
from atlantis.generation.transformers_generator import TransformersGenerator
from atlantis.models.loading import (
    fingerprint_model,
    is_encoder_decoder,
    load_model,
    load_tokenizer,
)
from atlantis.models.proxy import ProxyTunedLM
from atlantis.models.proxy_roles import check_roles
from atlantis.models.settings import DEFAULT, LoadingConfig

VERSION = 3
"""Raised when a change of the code changes texts."""

MakeStreamer = Callable[[PreTrainedTokenizerBase], BaseStreamer]
"""Makes what is told every token of a single completion as it comes."""


class GenerationBackend(Protocol):
    """A way to complete prompts."""

    def fingerprint(self) -> dict[str, Any]:
        """What the texts depend on; nothing is loaded.

        Raises:
            ModelError: A model cannot be found.
        """
        ...

    def open(self) -> AbstractContextManager[Generator]:
        """Load or connect; what is loaded is gone on exit."""
        ...


@dataclass(frozen=True)
class TransformersGeneration:
    """The model in this process; every architecture, the trusted texts."""

    model: str
    """Folder or Hub name."""
    loading: LoadingConfig = DEFAULT
    chat_template: str | None = None
    """``plain``, or a file with a Jinja template; by default the tokenizer's own."""
    batch_size: int = 8
    """Requests at a time."""

    def fingerprint(self) -> dict[str, Any]:
        """The model's files, how it is loaded and batched, the template, and versions."""
        is_encoder_decoder(self.model, self.loading)
        return {
            "backend": "transformers",
            "models": {"model": fingerprint_model(self.model, self.loading)},
            **local_fingerprint(
                self.tokenizer(), self.loading, self.chat_template, self.batch_size
            ),
        }

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return load_tokenizer(self.model, self.loading)

    @contextmanager
    def open(self, streamer: MakeStreamer | None = None) -> Opened[TransformersGenerator]:
        """Load the model."""
        model = load_model(self.model, self.loading)
        generator = _generator(self, model, streamer)
        del model
        try:
            yield generator
        finally:
            generator.close()
            free_memory()


@dataclass(frozen=True)
class ProxyGeneration:
    """A large model moved by what tuning did to a small one (`atlantis.models.proxy`)."""

    large: str
    small: str
    reference: str
    alpha: float = 1.0
    """How far."""
    loading: LoadingConfig = DEFAULT
    chat_template: str | None = None
    """As in `TransformersGeneration`; the tuned model's own has the chats that it learnt."""
    batch_size: int = 8

    def fingerprint(self) -> dict[str, Any]:
        """That of all three, and how far the large one is moved.

        Raises:
            ModelError: They have different tokenizers.
        """
        check_roles(self._names, self.loading)
        return {
            "backend": "transformers",
            "models": {
                role: fingerprint_model(name, self.loading) for role, name in self._names.items()
            },
            "alpha": self.alpha,
            **local_fingerprint(
                self.tokenizer(), self.loading, self.chat_template, self.batch_size
            ),
        }

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tuned model's of three with one vocabulary: it has the template that it learnt."""
        return load_tokenizer(self.reference, self.loading)

    @contextmanager
    def open(self, streamer: MakeStreamer | None = None) -> Opened[TransformersGenerator]:
        """Load the three models; see `Moved` for others of ``alpha``."""
        model = ProxyTunedLM.from_pretrained(
            **self._names, alpha=self.alpha, **self.loading.model_dump()
        )
        generator = _generator(self, model, streamer)
        del model
        try:
            yield generator
        finally:
            generator.close()
            free_memory()

    @property
    def _names(self) -> dict[str, str]:
        return {"large": self.large, "small": self.small, "reference": self.reference}


@dataclass(frozen=True)
class ServerGeneration:
    """A server with OpenAI-compatible endpoints for completions and chats."""

    base_url: str
    model: str
    """Its name on the server."""
    concurrency: int = 8
    """Most requests under way at a time."""
    patience_seconds: float = 300.0
    """How long a request is tried again after its first failure."""
    timeout_seconds: float = 600.0
    """Longest silence within one request."""
    api_key: str | None = field(default=None, repr=False)

    def fingerprint(self) -> dict[str, Any]:
        """The model's name there; not the address, which may change."""
        return {"backend": "server", "code": VERSION, "model": self.model}

    @contextmanager
    def open(self) -> Opened[ServerGenerator]:
        """Nothing is sent yet."""
        endpoint = Endpoint(
            self.base_url,
            api_key=self.api_key,
            timeout_seconds=self.timeout_seconds,
            patience_seconds=self.patience_seconds,
        )
        try:
            yield ServerGenerator(endpoint, self.model, concurrency=self.concurrency)
        finally:
            endpoint.close()


def local_fingerprint(
    tokenizer: PreTrainedTokenizerBase,
    loading: LoadingConfig,
    template: str | None,
    batch_size: int | None,
) -> dict[str, Any]:
    """What the texts of any model in this process depend on."""
    source = chat_template(tokenizer, template).source
    return {
        "code": VERSION,
        "batch_size": batch_size,
        "chat_template": digest_json(source),
        "loading": loading.model_dump(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _generator(
    backend: TransformersGeneration | ProxyGeneration,
    model: PreTrainedModel,
    streamer: MakeStreamer | None,
) -> TransformersGenerator:
    tokenizer = backend.tokenizer()
    return TransformersGenerator(
        model,
        tokenizer,
        template=chat_template(tokenizer, backend.chat_template),
        batch_size=backend.batch_size,
        streamer=None if streamer is None else streamer(tokenizer),
    )


def free_memory() -> None:
    """Give back what is not used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
