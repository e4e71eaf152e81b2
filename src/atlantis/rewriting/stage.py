"""Rewrite a data set of any size into a file; a kill costs at most what was being sampled.

The rows are read in windows. A window's samples stand in a cache until its rows are written as a
part; when all parts are there they become the file, and beside it stands a report.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial as bound
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import Progress

from atlantis.data.demonstrations import Demonstration
from atlantis.disk import exclusive, read_json, sync_folder, write_json, write_text
from atlantis.errors import ConfigError, DataError
from atlantis.generation.backends import (
    GenerationBackend,
    ProxyGeneration,
    TransformersGeneration,
)
from atlantis.generation.cache import CompletionCache, complete_all
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import Completion, Request
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.transformers_generator import TransformersGenerator
from atlantis.progress import progress_bar
from atlantis.rewriting.config import RewritingConfig
from atlantis.rewriting.golds import gold_of
from atlantis.rewriting.likelihood import Likelihood
from atlantis.rewriting.summary import Summary
from atlantis.rewriting.window import DROPPED, GUIDED, Rewriter, Score
from atlantis.store import begin, is_made
from atlantis.verification.claims import Verifier
from atlantis.verification.config import open_verifier

VERSION = 1
"""Raised when a change of the code changes rows."""
ROWS_PER_WINDOW = 512


@dataclass(frozen=True)
class RewritingJob:
    """What is rewritten, by which model, and how."""

    rows: Iterable[Demonstration]
    """All rows, the same at every reading."""
    backend: GenerationBackend
    policy: str
    """The model's name, for the rows and the report."""
    config: RewritingConfig

    def run(self, out: Path) -> dict[str, Any]:
        """Write ``out`` (JSONL), ``out.report.json`` and ``out.manifest.json``; return the report.

        A file that was made from the same rows, model and settings is left as it is.

        Raises:
            DataError: A row is malformed, or its answer cannot be graded.
            ConfigError: The back end cannot do what is asked, or the verifier cannot be opened.
            StoreError: The file was made from something else, or by something else.
            ResumableError: Another process is making it, or the server is gone.
        """
        if self.config.select == "most_likely" and not self._tells_likelihood:
            raise ConfigError(
                "select most_likely needs the back end transformers; use another rule"
            )
        with ExitStack() as stack:
            verifier = stack.enter_context(open_verifier(self.config.verifier))
            num_rows, digest = self._check_rows(verifier)
            fingerprint = self._fingerprint(verifier, digest)
            report, manifest = (_beside(out, name) for name in ("report.json", "manifest.json"))
            partial = _beside(out, "partial")
            if is_made(out, manifest, fingerprint):
                shutil.rmtree(partial, ignore_errors=True)
                return read_json(report)
            stack.enter_context(exclusive(partial))
            begin(partial, fingerprint)
            parts, summary = self._parts(partial, verifier, num_rows)
            write_json(report, summary.report(policy=self.policy))
            write_json(manifest, {"fingerprint": fingerprint})
            _join(parts, out)
            shutil.rmtree(partial)
        return read_json(report)

    def _check_rows(self, verifier: Verifier) -> tuple[int, str]:
        """Read everything once: how many rows, their digest; every answer can be graded."""
        digest, num_rows = hashlib.sha256(), 0
        for window in _windows(self._graded()):
            verifier.check_golds({row.example_id: row.answer or "" for row in window})
            for row in window:
                line = json.dumps(_content(row), ensure_ascii=False, sort_keys=True)
                digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
            num_rows += len(window)
        return num_rows, digest.hexdigest()

    @property
    def _tells_likelihood(self) -> bool:
        return isinstance(self.backend, TransformersGeneration | ProxyGeneration)

    def _graded(self) -> Iterator[Demonstration]:
        """The rows, each with its answer."""
        return (replace(row, answer=gold_of(row, self.config.verifier)) for row in self.rows)

    def _fingerprint(self, verifier: Verifier, digest: str) -> dict[str, Any]:
        return {
            "code": VERSION,
            "rows": digest,
            "rewriting": self.config.settings,
            "verifier": verifier.name,
            "backend": self.backend.fingerprint(),
        }

    def _parts(
        self, partial: Path, verifier: Verifier, num_rows: int
    ) -> tuple[list[Path], Summary]:
        """The parts, those made that are not there, and what stands in them."""
        parts: list[Path] = []
        summary = Summary()
        with LazyGenerator(self.backend) as generator, progress_bar() as bar:
            task = bar.add_task("rewrite", total=num_rows)
            score: Score | None = None
            for number, window in enumerate(_windows(self._graded())):
                part = partial / f"part-{number:05d}.jsonl"
                parts.append(part)
                if not part.exists():
                    if score is None and self._tells_likelihood:
                        score = _likelihood(generator)
                    folder = partial / f"samples-{number:05d}"
                    sample = _Sampling(self.config, generator, folder, bar)
                    made = Rewriter(self.config, sample, verifier, score, self.policy)(window)
                    write_text(part, "".join(f"{_line(row)}\n" for row in made))
                    shutil.rmtree(folder, ignore_errors=True)
                summary.add(_rows_of(part))
                bar.update(task, advance=len(window), description=summary.rates())
        return parts, summary


@dataclass(frozen=True)
class _Sampling:
    """Samples of one window, kept until its part is written."""

    config: RewritingConfig
    generator: LazyGenerator
    folder: Path
    bar: Progress

    def __call__(self, stage: str, requests: Sequence[Request]) -> list[Completion | str]:
        config = self.config
        temperature = config.guided_temperature if stage == GUIDED else config.temperature
        chosen = SamplingConfig(
            max_new_tokens=config.max_new_tokens,
            temperature=temperature,
            top_p=config.top_p if temperature else 1.0,
            seed=config.seed,
        )
        reasons = self._unaskable(requests, chosen)
        asked = [request for request in requests if request.prompt.example_id not in reasons]
        task = self.bar.add_task(f"  {stage}", total=len(asked))
        refused: dict[int, str] = {}
        found = complete_all(
            self.generator,
            asked,
            chosen,
            CompletionCache(self.folder / stage),
            advance=bound(self.bar.advance, task),
            refused=refused,
        )
        self.bar.remove_task(task)
        said = (refused.get(place) or texts[0] for place, texts in enumerate(found))
        return [reasons.get(request.prompt.example_id) or next(said) for request in requests]

    def _unaskable(self, requests: Sequence[Request], config: SamplingConfig) -> dict[str, str]:
        """Why prompts cannot be completed, such as those that are too long, by their id."""
        reasons: dict[str, str] = {}
        for request in {request.prompt.example_id: request for request in requests}.values():
            try:
                self.generator.check([request], config)
            except DataError as error:
                reasons[request.prompt.example_id] = str(error)
        return reasons


def _likelihood(lazy: LazyGenerator) -> Likelihood:
    generator = lazy.generator
    assert isinstance(generator, TransformersGenerator)
    return Likelihood(generator.model, generator.tokenizer, generator.template)


def _windows(rows: Iterable[Demonstration]) -> Iterator[list[Demonstration]]:
    upcoming = iter(rows)
    while window := list(islice(upcoming, ROWS_PER_WINDOW)):
        yield window


def _content(row: Demonstration) -> list[Any]:
    content = row.prompt.content
    turns = content if isinstance(content, str) else [list(content.messages), list(content.tools)]
    return [row.example_id, turns, row.expert, row.answer]


def _rows_of(part: Path) -> Iterator[dict[str, Any]]:
    with part.open(encoding="utf-8", errors="surrogatepass") as lines:
        for line in lines:
            yield json.loads(line)


def _join(parts: Sequence[Path], out: Path) -> None:
    """Put what is not dropped into one file, which may be larger than the memory."""
    temporary = out.with_name(f".tmp-{out.name}")
    with temporary.open("w", encoding="utf-8", errors="surrogatepass") as joined:
        for row in (row for part in parts for row in _rows_of(part)):
            if row["source"] != DROPPED:
                joined.write(f"{_line(row)}\n")
        joined.flush()
        os.fsync(joined.fileno())
    temporary.replace(out)
    sync_folder(out.parent)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.name}.{name}")
