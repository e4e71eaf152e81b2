"""An HTTP endpoint that takes JSON: asked again while it fails, refused in the server's own words.

A connection that breaks, a 408, a 429 and a 5xx may pass: they are tried again with growing pauses,
or after the time that the server names, as long as the patience lasts. A server that is killed and
started again meanwhile is not noticed.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from atlantis.errors import ConfigError, ResumableError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_PASSING = (408, 425, 429)
"""Statuses below 500 that say nothing against the request."""


class RefusedError(Exception):
    """The server understood, and does not do it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status


class _PassingError(Exception):
    """A failure that may be gone at the next try."""

    def __init__(self, reason: str, *, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Endpoint:
    """A server's address, asked by any number of threads.

    Args:
        base_url: As the OpenAI client has it: ``http://127.0.0.1:8000/v1``.
        api_key: Sent as a bearer token, and shown nowhere.
        timeout_seconds: Longest silence of the server within one request.
        patience_seconds: How long a request is tried again after its first failure.

    Raises:
        ConfigError: ``base_url`` is not an HTTP address.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        patience_seconds: float = 300.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"server {base_url!r}: give an address like http://127.0.0.1:8000/v1")
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._closed = threading.Event()
        self._is_troubled = False

    def post(self, path: str, fields: Mapping[str, Any]) -> bytes:
        """Send a request until it is answered, refused, or patience is at its end.

        Args:
            path: What follows the base address, such as ``/completions``.
            fields: The request.

        Raises:
            RefusedError: The server refuses it.
            ResumableError: It failed again and again.
        """
        url, body = self.base_url + path, json.dumps(fields).encode()
        spent, failures = 0.0, 0
        while True:
            begun = time.monotonic()
            try:
                answer = self._send(url, body)
            except _PassingError as error:
                # The first try may have worked for minutes before it broke: that is no waiting.
                spent += time.monotonic() - begun if failures else 0.0
                failures += 1
                pause = max(error.wait_seconds, _backoff_seconds(failures))
                if spent + pause > self._patience_seconds or self._closed.is_set():
                    raise ResumableError(
                        f"{url}: failed {failures} times in {spent:.0f} s, last with {error}; run "
                        "the same command again when the server works"
                    ) from None
                self._tell(url, error)
                self._pause(pause)
                spent += pause
            else:
                self._is_troubled = False
                return answer

    def close(self) -> None:
        """Let those give up that wait for another try."""
        self._closed.set()

    def _send(self, url: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            request = Request(url, data=body, headers=headers)
            with urlopen(request, timeout=self._timeout_seconds) as answer:
                return answer.read()
        except HTTPError as error:
            reason = self._without_key(_said(error))
            if error.code in _PASSING or error.code >= 500:
                wait = _retry_after(error)
                raise _PassingError(f"HTTP {error.code}: {reason}", wait_seconds=wait) from None
            raise RefusedError(error.code, reason) from None
        except (OSError, HTTPException) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from None

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _tell(self, url: str, error: Exception) -> None:
        """Say once that there is something to wait for."""
        if not self._is_troubled:
            self._is_troubled = True
            _log.warning("%s: %s; trying again for %.0f s", url, error, self._patience_seconds)

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text


def _backoff_seconds(failures: int) -> float:
    """Twice as long each time, up to a half less, so that many clients do not come back at once."""
    longest = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def _said(error: HTTPError) -> str:
    """What the server said about its refusal, cut to a line."""
    try:
        body = error.read(2000)
    except (OSError, HTTPException):
        body = b""
    return " ".join(body.decode("utf-8", "replace").split())[:300] or str(error.reason)


def _retry_after(error: HTTPError) -> float:
    """Seconds that the server asks for, as a number or as a date; 0 where it names none."""
    value = error.headers.get("Retry-After", "").strip()
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max((until.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)
