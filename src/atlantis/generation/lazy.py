"""Generators that are opened when they are first asked, and not at all where nothing is left."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from atlantis.generation.backends import GenerationBackend
from atlantis.generation.requests import Finished, Generator, Request
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.transformers_generator import TransformersGenerator
from atlantis.models.proxy import ProxyTunedLM


class LazyGenerator:
    """A generator that is opened when it is first asked. A context manager."""

    def __init__(self, backend: GenerationBackend) -> None:
        self._backend = backend
        self._generator: Generator | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close what was opened."""
        self._generator = None
        self._open.close()

    @property
    def generator(self) -> Generator:
        """The back end's own."""
        if self._generator is None:
            self._generator = self._open.enter_context(self._backend.open())
        return self._generator

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """See `Generator`."""
        self.generator.check(requests, config)

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """See `Generator`."""
        return self.generator.complete(requests, config)


class Moved:
    """A proxy-tuned model at one of several alphas, for which it is loaded once.

    Args:
        shared: Opens the `ProxyGeneration`.
        alpha: How far.
    """

    def __init__(self, shared: LazyGenerator, alpha: float) -> None:
        self._shared = shared
        self._alpha = alpha

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """See `Generator`."""
        self._shared.check(requests, config)

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """See `Generator`; one alpha after the other."""
        move(self._shared.generator, self._alpha)
        return self._shared.complete(requests, config)


def move(generator: Generator, alpha: float) -> None:
    """Set how far the model of an opened `ProxyGeneration` is moved."""
    assert isinstance(generator, TransformersGenerator)
    assert isinstance(generator.model, ProxyTunedLM)
    generator.model.alpha = alpha
