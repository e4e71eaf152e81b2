"""Completions that are there already: whatever ends a run, what was finished is not asked again."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from atlantis.disk import digest_json, exclusive
from atlantis.generation.requests import (
    Completion,
    Generator,
    PromptRefusedError,
    Request,
    completions_of,
)
from atlantis.generation.sampling import SamplingConfig
from atlantis.journal import Journal
from atlantis.records import Conversation


class CompletionCache:
    """A folder with a journal of finished requests. A context manager; may be entered again inside.

    A key stands for all that one back end's completion depends on (`request_key`). Which back end
    that is does not stand here: the owner of the folder keeps the back end's fingerprint beside it.
    Everything in the journal is held in memory.

    Args:
        folder: Made when it is entered; one process may be in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = Journal(folder / "journal")
        self._found: dict[str, str] = {}
        self._open = ExitStack()
        self._depth = 0

    def __enter__(self) -> Self:
        """Read what is there, and hold the folder.

        Raises:
            ResumableError: Another process holds it.
        """
        if not self._depth:
            with ExitStack() as stack:
                stack.enter_context(exclusive(self._folder))
                for table in self._journal.read():
                    self._found |= zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
                stack.enter_context(self._journal)
                self._open = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the folder go; what was found stays known."""
        self._depth -= 1
        if not self._depth:
            self._open.close()

    def __contains__(self, key: str) -> bool:
        """Whether a request is finished."""
        return key in self._found

    def __getitem__(self, key: str) -> list[Completion]:
        """The completions of a finished request."""
        return [Completion(*said) for said in json.loads(self._found[key])]

    def add(self, finished: Iterable[tuple[str, list[Completion]]]) -> None:
        """Keep requests that were finished together.

        Raises:
            OSError: The disk is full or fails; what was there before is intact.
        """
        # As JSON, which holds the lone surrogates that a server may send and Arrow refuses.
        said = {key: json.dumps(completions) for key, completions in finished}
        self._journal.append(
            pa.table(dict(zip(_COLUMNS, map(list, (said, said.values())), strict=True)))
        )
        self._found |= said


_COLUMNS = ("key", "completions")


def request_key(request: Request, config: SamplingConfig) -> str:
    """Digest of what a completion depends on beside the back end.

    Greedy completions and beams are those of a prompt's content, samples those of an example's
    attempt.
    """
    return digest_json({"prompt": _content(request)} | _settings(request, config))


def complete_all(
    generator: Generator,
    requests: Sequence[Request],
    config: SamplingConfig,
    cache: CompletionCache,
    *,
    advance: Callable[[int], None] = lambda count: None,
    refused: dict[int, str] | None = None,
) -> list[list[Completion]]:
    """The completions of each request; those that are in the cache are not asked again.

    A kill at any moment loses what the generator had not finished: a batch, or the requests under
    way. Requests of one key are asked once.

    Args:
        generator: Not touched where the cache has everything; see `LazyGenerator`.
        requests: What is wanted.
        config: How completions are chosen.
        cache: Where finished requests stand and go to.
        advance: Told how many more requests are finished.
        refused: Takes the places of requests that a server refuses, and why; they have no
            completion, and are asked again by a rerun. Without it the first refusal is an error.

    Raises:
        DataError: A prompt does not fit the model, or is refused.
        ConfigError: The generator cannot sample like this.
        ResumableError: It stopped, or another process uses the cache.
    """
    keys = [request_key(request, config) for request in requests]
    with cache:
        places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            if key not in cache:
                places.setdefault(key, []).append(place)
        advance(len(keys) - sum(map(len, places.values())))
        wanted = [requests[same[0]] for same in places.values()]
        if wanted:
            generator.check(wanted, config)
            names = list(places)
            for finished in generator.complete(wanted, config):
                said: list[tuple[str, list[Completion]]] = []
                for place, outcome in finished:
                    if refused is not None and isinstance(outcome, PromptRefusedError):
                        refused.update(dict.fromkeys(places[names[place]], str(outcome)))
                    else:
                        said.append((names[place], completions_of(outcome)))
                if said:
                    cache.add(said)
                advance(sum(len(places[names[place]]) for place, _ in finished))
    return [[] if refused and place in refused else cache[key] for place, key in enumerate(keys)]


def _settings(request: Request, config: SamplingConfig) -> dict[str, Any]:
    if not config.temperature:
        names = {"max_new_tokens", "num_beams", "num_return_sequences"}
        return config.model_dump(include=names)
    return config.model_dump(include={"max_new_tokens", "temperature", "top_p", "seed"}) | {
        "example_id": request.prompt.example_id,
        "attempt": request.attempt,
    }


def _content(request: Request) -> Any:
    content = request.prompt.content
    if isinstance(content, Conversation):
        return {"messages": list(content.messages), "tools": list(content.tools)}
    return content
