"""Options of the commands that generate to what completes prompts."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from atlantis.errors import ConfigError
from atlantis.generation.backends import (
    GenerationBackend,
    ProxyGeneration,
    ServerGeneration,
    TransformersGeneration,
)
from atlantis.generation.completed_file import Alphas
from atlantis.generation.lazy import LazyGenerator, Moved
from atlantis.generation.vllm_backend import VllmGeneration
from atlantis.models.proxy_roles import ROLES
from atlantis.models.settings import LoadingConfig
from atlantis.validation import validated

_ONLY: dict[str, tuple[str, ...]] = {
    "batch_size": ("transformers",),
    "base_url": ("server",),
    "concurrency": ("server",),
    "patience": ("server",),
    "chat_template": ("transformers", "vllm"),
}
"""Back ends for which an option has an effect."""
_BATCH_SIZE, _CONCURRENCY, _PATIENCE = 8, 8, 300.0


@dataclass(frozen=True)
class Job:
    """What completes prompts, for one alpha or several."""

    backend: GenerationBackend
    alphas: tuple[float | None, ...]
    """None for one model."""

    @contextmanager
    def generators(self) -> Generator[Alphas]:
        """One for each alpha; the models are loaded once, when they are first asked."""
        with LazyGenerator(self.backend) as shared:
            yield {
                alpha: shared if alpha is None else Moved(shared, alpha) for alpha in self.alphas
            }


def read_job(
    backend: str,
    *,
    model: str | None,
    where: str,
    api_key: str | None,
    chat_template: str | None,
    proxy: Sequence[str] = (),
    alphas: Sequence[float] = (),
    base_url: str | None,
    concurrency: int | None,
    patience: float | None,
    batch_size: int | None,
    **loading: Any,
) -> Job:
    """What the options ask for; those that belong to some of the back ends are None if not given.

    Args:
        backend: ``transformers``, ``server`` or ``vllm``.
        model: Folder or Hub name, or the name on the server.
        where: Begins the messages.
        api_key: Of the server; it may stand in the environment without being meant for us.
        chat_template: What turns chats into text; not for a server.
        proxy: The roles of proxy-tuning, each ``ROLE=MODEL``.
        alphas: How far to move.
        base_url: Address of the server.
        concurrency: Requests under way at the server.
        patience: Seconds to wait for the server.
        batch_size: Completions at a time; for transformers.
        loading: Fields of `LoadingConfig`.

    Raises:
        ConfigError: Options contradict each other or would have no effect.
    """
    config = validated(LoadingConfig, loading, where=where)
    options: dict[str, Any] = {
        "base_url": base_url,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "concurrency": concurrency,
        "patience": patience,
    }
    given = {name: value for name, value in options.items() if value is not None}
    names = _models(model, proxy)
    found = _alphas(alphas, is_proxy=bool(proxy))
    _check_backend(backend, given, is_proxy=bool(proxy))
    if backend == "server":
        _check_loading(config)
        made = ServerGeneration(
            given["base_url"],
            names["model"],
            concurrency=given.get("concurrency", _CONCURRENCY),
            patience_seconds=given.get("patience", _PATIENCE),
            api_key=api_key,
        )
    elif backend == "vllm":
        made = VllmGeneration(names["model"], config, given.get("chat_template"))
    else:
        rest = (config, given.get("chat_template"), given.get("batch_size", _BATCH_SIZE))
        made = (
            TransformersGeneration(names["model"], *rest)
            if found == (None,)
            else ProxyGeneration(**names, alpha=found[0] or 0.0, **_named(rest))
        )
    return Job(made, found)


def _named(rest: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("loading", "chat_template", "batch_size"), rest, strict=True))


def _check_backend(backend: str, given: Mapping[str, Any], *, is_proxy: bool) -> None:
    if backend not in ("transformers", "server", "vllm"):
        raise ConfigError(f"--backend {backend}: choose transformers, server or vllm")
    if is_proxy and backend != "transformers":
        raise ConfigError(f"--proxy needs logits, which --backend {backend} does not give")
    for name, backends in _ONLY.items():
        if name in given and backend not in backends:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no effect with --backend {backend}")
    if backend == "server" and "base_url" not in given:
        raise ConfigError("--backend server needs --base-url, such as http://HOST:8000/v1")


def _check_loading(config: LoadingConfig) -> None:
    """The server loads the model as it was started."""
    plain = LoadingConfig()
    for name in LoadingConfig.model_fields:
        if getattr(config, name) != getattr(plain, name):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no effect with --backend server")


def _models(model: str | None, proxy: Sequence[str]) -> dict[str, str]:
    if (model is None) == (not proxy):
        raise ConfigError("give --model, or --proxy large=MODEL, small=MODEL and reference=MODEL")
    if model is not None:
        return {"model": model}
    found: dict[str, str] = {}
    for text in proxy:
        role, _, name = text.partition("=")
        if role not in ROLES or not name:
            raise ConfigError(f"--proxy {text}: write large=MODEL, small=MODEL or reference=MODEL")
        if role in found:
            raise ConfigError(f"--proxy {text}: {role} stands there twice")
        found[role] = name
    lacking = [role for role in ROLES if role not in found]
    if lacking:
        raise ConfigError(f"--proxy {lacking[0]}=MODEL is missing; proxy-tuning needs three models")
    return found


def _alphas(given: Sequence[float], *, is_proxy: bool) -> tuple[float | None, ...]:
    if not is_proxy:
        if given:
            raise ConfigError("--alpha has no effect without --proxy")
        return (None,)
    for value in given:
        if not math.isfinite(value):
            raise ConfigError(f"--alpha {value}: give a finite number, such as 1.0")
    if len(set(given)) < len(given):
        raise ConfigError("--alpha: the same value stands there twice")
    return tuple(given) or (1.0,)
