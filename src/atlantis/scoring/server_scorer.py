"""Log-probabilities of completions from a server with an OpenAI-compatible completions endpoint.

Token ids go in, never text: the server tokenizes nothing, so that its scores belong to the ids that
training sees. The log-probabilities of a prompt are not part of OpenAI's own API; vLLM, SGLang and
others return them in one of two forms. The better one that the server knows is found by asking
once, before any row is scored.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from atlantis.data.tokenization import TokenizedExample
from atlantis.endpoint import Endpoint, RefusedError
from atlantis.errors import ModelError, ResumableError
from atlantis.records import TokenScores
from atlantis.scoring.scorer import token_scores, unscored

_PROBE = (0, 1, 2)
"""Ids that every vocabulary has, different from each other."""
_PATIENCE_SECONDS = 60.0
_FLOOR = -9999.0
"""What vLLM's server writes for a log-probability of minus infinity, which JSON cannot hold."""
_NOT_A_NUMBER = "not JSON compliant"
"""From the message of Python's JSON writer about a NaN; vLLM's server sends it with a 400."""


class _UnusableError(Exception):
    """The server does not know a form of request, or its answer lacks what is needed."""


class _NonfiniteError(_UnusableError):
    """The server has an answer, and cannot write it down because a number in it is not finite."""


class _Form(Protocol):
    """A form of the request, and how its answer is read."""

    @property
    def fields(self) -> dict[str, Any]:
        """What the request says beside the model and the ids."""
        ...

    def read(
        self, choice: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int]
    ) -> list[float]:
        """The log-probabilities at some positions of the ids.

        Raises:
            _UnusableError: They are not there, or belong to other ids.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyedByToken:
    """vLLM's ``prompt_logprobs``: for each position a dictionary from token id to log-probability.

    The only form that says which token each number belongs to, so that a server which moved the
    ids by one, or took others, is found out on the first row.
    """

    @property
    def fields(self) -> dict[str, Any]:
        return {"prompt_logprobs": 0, "max_tokens": 1}

    def read(
        self, choice: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int]
    ) -> list[float]:
        entries = _list_of(choice, "prompt_logprobs", len(ids))
        return [_of_token(entries[position], ids[position]) for position in positions]


@dataclass(frozen=True, slots=True)
class Echoed:
    """OpenAI's ``echo`` with ``logprobs``: the prompt's tokens come back before the generated ones.

    The tokens come back as text, which may spell several ids, so that only their number can be
    checked; `check_parity` does the rest.
    """

    max_tokens: int
    """0 where the server allows it; else 1, and the generated token is dropped."""

    @property
    def fields(self) -> dict[str, Any]:
        # 1 rather than 0: there are servers to which logprobs=0 means none.
        return {"echo": True, "logprobs": 1, "max_tokens": self.max_tokens}

    def read(
        self, choice: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int]
    ) -> list[float]:
        logprobs: Any = choice.get("logprobs")
        if not isinstance(logprobs, Mapping):
            raise _UnusableError("the answer has no logprobs")
        values = _list_of(logprobs, "token_logprobs", len(ids) + self.max_tokens)
        return [_number(values[position]) for position in positions]


_FORMS: tuple[_Form, ...] = (KeyedByToken(), Echoed(max_tokens=0), Echoed(max_tokens=1))


class ServerScorer:
    """Scores rows over HTTP, several requests at a time.

    A connection that breaks, a 429 and a 5xx are tried again with growing pauses, for a minute.
    What the server computes depends on what else it computes at that moment, in the
    last bits: two runs give scores that are equal to about 1e-5, not to the byte.
    """

    def __init__(
        self,
        base_url: str,
        served_model: str,
        *,
        score_end_of_turn: bool = False,
        concurrency: int = 8,
        timeout_seconds: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        """Ask the server once, and find the form of request that it answers.

        Args:
            base_url: As the OpenAI client has it: ``http://127.0.0.1:8000/v1``.
            served_model: The name under which the server has the model.
            score_end_of_turn: Whether end-of-turn tokens count.
            concurrency: Most requests under way at a time.
            timeout_seconds: Longest silence of the server within one request.
            api_key: Sent as a bearer token.

        Raises:
            ConfigError: ``base_url`` is not an HTTP address.
            ModelError: The server does not have the model, or gives no log-probabilities of a
                prompt.
            ResumableError: The server cannot be reached.
        """
        self._endpoint = Endpoint(
            base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            patience_seconds=_PATIENCE_SECONDS,
        )
        self._url = self._endpoint.base_url + "/completions"
        self._served_model = served_model
        self._score_end_of_turn = score_end_of_turn
        self._concurrency = concurrency
        self.form = self._find_form()
        """The form of request that the server answers."""

    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        """Score rows with status ``ok``, in their order.

        Raises:
            ModelError: The server refuses a row, or answers for other ids.
            ResumableError: The server could not be reached, or failed, again and again.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(self._score_row, batch))

    def _score_row(self, row: TokenizedExample) -> TokenScores:
        if row.encoder_ids:
            raise ModelError("a completions server scores decoder-only models; use transformers")
        positions = row.scored_positions(end_of_turn=self._score_end_of_turn)
        ids = row.input_ids[: positions[-1] + 1]  # nothing after it has a say
        try:
            return token_scores(row, self._ask(self.form, ids, positions))
        except _NonfiniteError:
            return unscored(row, "nonfinite")
        except _UnusableError as error:
            raise ModelError(f"{self._url}: row {row.example_id}: {error}") from None
        except ResumableError as error:
            raise ResumableError(f"row {row.example_id}: {error}") from None

    def _find_form(self) -> _Form:
        reasons: list[str] = []
        for form in _FORMS:
            try:
                self._ask(form, _PROBE, range(1, len(_PROBE)))
            except _UnusableError as error:
                reasons.append(f"{json.dumps(form.fields)}: {error}")
            else:
                return form
        raise ModelError(
            f"{self._url}: the server gives no log-probabilities of a prompt, which scoring needs "
            f"(vLLM and SGLang do); asked with {'; '.join(reasons)}"
        )

    def _ask(
        self, form: _Form, ids: Sequence[int], positions: Sequence[int]
    ) -> NDArray[np.float64]:
        fields = {"model": self._served_model, "prompt": list(ids), "temperature": 0}
        try:
            answer = self._endpoint.post("/completions", fields | form.fields)
        except RefusedError as error:
            raise self._refusal(error) from None
        choice = _only_choice(answer, num_ids=len(ids))
        values = np.array(form.read(choice, ids, positions), dtype=np.float64)
        return np.where(values == _FLOOR, -np.inf, values)

    def _refusal(self, error: RefusedError) -> Exception:
        """What a refusal means: try another form, or give up."""
        if _NOT_A_NUMBER in str(error):
            return _NonfiniteError(str(error))
        if error.status in (400, 422):
            return _UnusableError(str(error))
        return ModelError(
            f"{self._url}: {error}; check the address (it ends in /v1), the model's name "
            f"({self._served_model!r}) and the key"
        )


def _only_choice(answer: bytes, *, num_ids: int) -> Mapping[str, Any]:
    """The one choice of an answer that says nothing against the ids that were sent."""
    try:
        parsed: Any = json.loads(answer)
        choice: Any = parsed["choices"][0]
        num_read: Any = (parsed.get("usage") or {}).get("prompt_tokens", num_ids)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _UnusableError("the answer is not that of a completions endpoint") from None
    if num_read != num_ids:
        raise _UnusableError(f"the server read {num_read} tokens where {num_ids} were sent")
    if not isinstance(choice, Mapping):
        raise _UnusableError("the answer is not that of a completions endpoint")
    return cast(Mapping[str, Any], choice)


def _list_of(container: Mapping[str, Any], name: str, length: int) -> list[Any]:
    values: Any = container.get(name)
    if not isinstance(values, list):
        raise _UnusableError(f"the answer has no {name}")
    entries = cast(list[Any], values)
    if len(entries) != length:
        raise _UnusableError(f"the answer has {name} for {len(entries)} tokens, not for {length}")
    return entries


def _of_token(entry: Any, token: int) -> float:
    try:
        return _number(entry[str(token)]["logprob"])
    except (LookupError, TypeError):
        raise _UnusableError(
            f"the answer has no log-probability of token {token} where that was sent"
        ) from None


def _number(value: Any) -> float:
    """A log-probability; null is how JSON writers without NaN write one."""
    if value is None:
        return float("nan")
    if isinstance(value, int | float):
        return float(value)
    raise _UnusableError(f"the answer has {value!r} in place of a log-probability")
