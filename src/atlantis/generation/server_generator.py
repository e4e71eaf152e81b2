"""Completions from a server with OpenAI-compatible endpoints: vLLM, SGLang, `transformers serve`.

Servers differ in what they ignore without a word: ``n``, ``seed``, sampling itself. Each attempt is
a request of its own, and what comes back is checked against what was asked.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from atlantis.data.prompts import Prompt, user_says
from atlantis.endpoint import Endpoint, RefusedError
from atlantis.errors import ConfigError, DataError, ModelError, ResumableError
from atlantis.generation.answers import UnfinishedError, WrongAnswerError, read_completion
from atlantis.generation.requests import Completion, Finished, PromptRefusedError, Request
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.streams import short_seed
from atlantis.records import Conversation

_log = logging.getLogger(__name__)

_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""vLLM and SGLang take a checkpoint's own defaults where a request says nothing else."""
_ABOUT_THE_PROMPT = (400, 413, 422)
"""Statuses that may be meant for one prompt alone; the others refuse whoever asks."""
_SHORT = "Hello"
"""What the server is tried with: no prompt of the data, which it might refuse."""
_PROBES = 5
_PROBE_TEMPERATURE = 2.0
_PROBE_TOKENS = 24
_NUM_TRIES = 3
"""Of a completion that the server breaks off."""


class ServerGenerator:
    """Completes prompts over HTTP, several requests at a time.

    Args:
        endpoint: The server; whoever made it closes it.
        served_model: The name under which the server has the model.
        concurrency: Most requests under way at a time.
    """

    def __init__(self, endpoint: Endpoint, served_model: str, *, concurrency: int = 8) -> None:
        self._endpoint = endpoint
        self._served_model = served_model
        self._concurrency = concurrency
        self._neutral: dict[str, Any] | None = None
        self._has_sampled = False
        self._completed_lengths = set[int]()

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """Refuse prompts without text, and a server that does not do what it is asked.

        Raises:
            DataError: A prompt is empty.
            ConfigError: Beams were asked for.
            ModelError: The server does not have the model, or answers something else than asked.
            ResumableError: The server cannot be reached.
        """
        if config.num_beams > 1:
            raise ConfigError("a server has no beam search; use the transformers back end")
        for request in requests:
            content = request.prompt.content
            if isinstance(content, str) and not content.strip():
                where = f"example {request.prompt.example_id!r}"
                raise DataError(f"{where}: the prompt is empty; fill it in")
        if not requests:
            return
        short = _short_prompt(requests[0].prompt)
        if self._neutral is None:
            self._neutral = self._accepted(short)
        if config.temperature and not self._has_sampled:
            self._check_sampling(short)
            self._has_sampled = True

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """One request at a time, as they finish; a refused prompt does not stop the others.

        Raises:
            ModelError: The server refuses every request, or answers something else than asked.
            ResumableError: It could not be reached, or failed, again and again.
        """
        answers: SimpleQueue[tuple[int, Completion | Exception]] = SimpleQueue()
        places, lock = iter(range(len(requests))), threading.Lock()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                said = self._attempted(requests[place], config)
                if isinstance(said, Exception) and not isinstance(said, PromptRefusedError):
                    stopped.set()
                answers.put((place, said))

        # Daemons: an interrupted run does not wait for answers that nobody reads.
        for _ in range(min(self._concurrency, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in requests:
                place, said = answers.get()
                if isinstance(said, PromptRefusedError):
                    self._check_short_prompt(requests[place].prompt, config)
                    yield [(place, said)]
                elif isinstance(said, Exception):
                    raise said
                else:
                    self._completed_lengths.add(config.max_new_tokens)
                    yield [(place, [said])]
        finally:
            stopped.set()

    def _attempted(self, request: Request, config: SamplingConfig) -> Completion | Exception:
        """The completion, or what is to be raised where answers are read."""
        where = f"example {request.prompt.example_id!r}"
        try:
            return self._ask(request.prompt, _fields(request, config) | (self._neutral or {}))
        except RefusedError as error:
            if error.status in _ABOUT_THE_PROMPT:
                return PromptRefusedError(f"{where}: the server refuses it: {error}")
            return self._refusal(error, where)
        except WrongAnswerError as error:
            return self._refusal(error, where)
        except ResumableError as error:
            return ResumableError(f"{where}: {error}")
        except Exception as error:  # a thread has nobody else to tell
            return error

    def _ask(self, prompt: Prompt, fields: dict[str, Any]) -> Completion:
        is_chat = isinstance(prompt.content, Conversation)
        path = "/chat/completions" if is_chat else "/completions"
        sent = {"model": self._served_model, **_content(prompt), **fields}
        for left in reversed(range(_NUM_TRIES)):
            answer = self._endpoint.post(path, sent)
            try:
                return read_completion(
                    answer,
                    is_chat=is_chat,
                    served_model=self._served_model,
                    max_new_tokens=fields["max_tokens"],
                )
            except UnfinishedError as error:
                if not left:
                    raise ResumableError(f"{error}, {_NUM_TRIES} times") from None
        raise AssertionError("the last try returns or raises")

    def _accepted(self, prompt: Prompt) -> dict[str, Any]:
        """Those fields that switch a checkpoint's own sampling defaults off, if they are known."""
        fields = {"max_tokens": 1, "temperature": 0.0}
        try:
            self._ask(prompt, fields | _NEUTRAL)
        except RefusedError as error:
            if error.status not in (400, 422):
                raise self._refusal(error, "a first request") from None
        except WrongAnswerError as error:
            raise self._refusal(error, "a first request") from None
        else:
            return _NEUTRAL
        try:
            self._ask(prompt, fields)
        except (WrongAnswerError, RefusedError) as error:
            raise self._refusal(error, "a first request") from None
        _log.warning(
            "%s does not take %s: what the checkpoint's generation_config.json says of them counts",
            self._endpoint.base_url,
            ", ".join(_NEUTRAL),
        )
        return {}

    def _check_short_prompt(self, refused: Prompt, config: SamplingConfig) -> None:
        """Find out whether a refusal is meant for one prompt, unless another was completed.

        Raises:
            ModelError: The server refuses a prompt of one word, too.
        """
        if config.max_new_tokens in self._completed_lengths:
            return
        fields = {"max_tokens": config.max_new_tokens, "temperature": 0.0}
        try:
            self._ask(_short_prompt(refused), fields | (self._neutral or {}))
        except (WrongAnswerError, RefusedError) as error:
            where = f"example {refused.example_id!r} and even a prompt of one word"
            raise self._refusal(error, where) from None
        self._completed_lengths.add(config.max_new_tokens)

    def _check_sampling(self, prompt: Prompt) -> None:
        """Sample one prompt with several seeds: they cannot all say the same.

        Raises:
            ModelError: They do.
        """
        said: list[Completion] = []
        sampling = {"temperature": _PROBE_TEMPERATURE, "top_p": 1.0, "max_tokens": _PROBE_TOKENS}
        for seed in range(_PROBES):
            try:
                said.append(self._ask(prompt, sampling | {"seed": seed} | (self._neutral or {})))
            except (WrongAnswerError, RefusedError) as error:
                raise self._refusal(error, "a sample") from None
        if len(set(said)) == 1:
            raise ModelError(
                f"{self._endpoint.base_url}: {_PROBES} samples of one prompt with different seeds "
                f"at temperature {_PROBE_TEMPERATURE:g} are the same; the server takes the most "
                "likely token although it is asked to sample. With `transformers serve` put "
                '"do_sample": true into the model\'s generation_config.json and start it again; '
                "or use vLLM, SGLang or the transformers back end"
            )

    def _refusal(self, error: Exception, where: str) -> ModelError:
        url = self._endpoint.base_url
        if isinstance(error, RefusedError) and error.status in (401, 403, 404):
            return ModelError(
                f"{url}: {error}; check the address (it ends in /v1), the model's name "
                f"({self._served_model!r}) and the key"
            )
        return ModelError(f"{url}: {where}: {error}")


def _short_prompt(like: Prompt) -> Prompt:
    """One word, as a text or as a chat."""
    is_chat = isinstance(like.content, Conversation)
    return user_says(_SHORT, example_id="") if is_chat else Prompt("", _SHORT)


def _content(prompt: Prompt) -> dict[str, Any]:
    content = prompt.content
    if isinstance(content, str):
        return {"prompt": content}
    tools = {"tools": list(content.tools)} if content.tools else {}
    return {"messages": list(content.messages), **tools}


def _fields(request: Request, config: SamplingConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"max_tokens": config.max_new_tokens}
    if not config.temperature:
        return fields | {"temperature": 0.0}
    seed = short_seed(config.seed, request.prompt.example_id, request.attempt)
    return fields | {"temperature": config.temperature, "top_p": config.top_p, "seed": seed}
