"""What is asked of a generator, and what it says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from atlantis.data.prompts import Prompt
from atlantis.errors import DataError
from atlantis.generation.sampling import SamplingConfig


class Completion(NamedTuple):
    """What a model says after a prompt."""

    text: str
    """Without special tokens."""
    num_tokens: int
    """New tokens, the one that ends it among them."""
    finish_reason: str
    """``stop`` at an end token, ``length`` at ``max_new_tokens``."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted; of a beam search as many as `SamplingConfig` says."""

    prompt: Prompt
    attempt: int = 0
    """Which of the example's samples."""


class PromptRefusedError(DataError):
    """A server does not complete one prompt, such as one that is too long; others it does."""


Finished = list[tuple[int, list[Completion] | PromptRefusedError]]
"""Places among the requests, each with its completions, the most likely first, or why there are
none."""


class Generator(Protocol):
    """Completes prompts under one model."""

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """Refuse what cannot be completed, before the first request is.

        Raises:
            DataError: A prompt does not fit the model.
            ConfigError: The generator cannot sample like this.
        """
        ...

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """Each request once, in any order: those that are finished together come together."""
        ...


def completions_of(outcome: list[Completion] | PromptRefusedError) -> list[Completion]:
    """The completions of a finished request.

    Raises:
        PromptRefusedError: There are none.
    """
    if isinstance(outcome, PromptRefusedError):
        raise outcome
    return outcome


def requests_for(prompts: Sequence[Prompt], config: SamplingConfig) -> list[Request]:
    """Those of all prompts: one after the other, and each with all its attempts."""
    return [Request(prompt, n) for prompt in prompts for n in range(config.num_attempts)]
