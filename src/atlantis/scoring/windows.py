"""One window of rows after the other: tokenized ahead, scored by batches, written behind.

A window is a fixed run of rows and becomes one part of the store, so that memory does not grow with
the data and the parts do not depend on where a run stopped. Its batches are journalled as they are
done.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from atlantis.data.rendering import ChatTemplate
from atlantis.data.tokenization import (
    TokenizedExample,
    Truncation,
    tokenize,
    tokenize_pairs,
    without_prompt,
)
from atlantis.disk import digest_json
from atlantis.errors import DataError
from atlantis.progress import progress_bar
from atlantis.records import Row
from atlantis.scoring.backends import OpenScorer
from atlantis.scoring.batching import make_batches, score_what_fits
from atlantis.scoring.scorer import unscored
from atlantis.store import SCORE_SCHEMA, ScoreStore, score_table

ROWS_PER_PART = 8192
"""Rows that are sorted by length together, and that one file of the store holds."""


class Tokenizing(NamedTuple):
    """Everything that turns rows into ids; another process can have it."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    max_length: int
    truncation: Truncation
    decoder_start: int | None
    """The decoder's first token, where the model is an encoder-decoder."""

    @property
    def key(self) -> str:
        """The same for models that read every row as the same ids."""
        tokenizer: Any = self.tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", None)
        return digest_json(
            [
                tokenizer.name_or_path if fast is None else fast.to_str(),
                tokenizer.special_tokens_map,
                tokenizer.eos_token_id,
                self.template.source,
                self.decoder_start,
            ]
        )

    def __call__(self, rows: Sequence[Row]) -> list[TokenizedExample]:
        """Tokenize rows for the model."""
        if self.decoder_start is None:
            return tokenize(
                rows,
                self.tokenizer,
                max_length=self.max_length,
                truncation=self.truncation,
                template=self.template,
            )
        return tokenize_pairs(
            rows,
            self.tokenizer,
            start_token=self.decoder_start,
            max_length=self.max_length,
            truncation=self.truncation,
            template=self.template,
        )


class ModelPass(NamedTuple):
    """One model's share of a pass over the rows."""

    store: ScoreStore
    """A store that was started, and lacks something."""
    open_scorer: Callable[[Sequence[TokenizedExample]], OpenScorer]
    """Loads the model; called with the first rows to score."""
    head: int | None = None
    """Leave the prompt away, and put this token in its place; None to score after the prompt."""

    def view(self, window: Sequence[TokenizedExample]) -> Sequence[TokenizedExample]:
        """The rows as this pass reads them."""
        if self.head is None:
            return window
        return [without_prompt(r, self.head) if r.status == "ok" else r for r in window]


def score_windows(
    passes: Sequence[ModelPass],
    examples: Iterable[Row],
    tokenizing: Tokenizing,
    *,
    token_budget: int | Literal["auto"],
    num_rows: int,
    workers: int,
) -> None:
    """Score every part that the stores lack, and declare the stores complete.

    The rows are read and tokenized once for all models, which are in memory at the same time.

    Args:
        passes: The models, which read the rows as the same ids.
        examples: All rows, in the same order every time.
        tokenizing: What turns them into ids.
        token_budget: Padded tokens of one batch; ``auto`` leaves it to the scorer.
        num_rows: How many rows there are.
        workers: Processes that tokenize ahead; 0 for a thread.

    Raises:
        DataError: There are more or fewer rows than ``num_rows``.
    """
    stores = [model.store for model in passes]
    opened: list[OpenScorer] = []
    budgets: list[int] = []
    with _background(0) as writing, _background(workers) as ahead, progress_bar() as progress:
        tasks = [
            progress.add_task(f"score {store.folder.name}", total=num_rows) for store in stores
        ]
        written: Future[None] | None = None
        for index, window in _windows_ahead(examples, stores, tokenizing, ahead, num_rows=num_rows):
            if not opened:  # all are loaded before any measures the memory that is left
                opened = [model.open_scorer(window) for model in passes]
                budgets = [_budget(scorer, token_budget) for scorer in opened]
            for model, scorer, budget, task in zip(passes, opened, budgets, tasks, strict=True):
                progress.update(task, completed=index * ROWS_PER_PART)
                if model.store.has_part(index):
                    progress.advance(task, len(window))
                    continue
                table = _score_window(
                    model.store,
                    index,
                    model.view(window),
                    scorer,
                    token_budget=budget,
                    advance=partial(progress.advance, task),
                )
                if written is not None:
                    written.result()  # one part waits to be written, never more
                cut = sum(row.is_truncated for row in window)
                written = writing.submit(model.store.write_part, index, table, num_truncated=cut)
        if written is not None:
            written.result()
    for store in stores:
        store.finish()


def _budget(opened: OpenScorer, asked: int | Literal["auto"]) -> int:
    return opened.measure_budget() if asked == "auto" else asked


@contextmanager
def _background(workers: int) -> Generator[Executor]:
    """One thread, or processes of their own; what has not begun when the block ends is dropped."""
    if workers:
        # Not forked: the model's threads and the GPU do not survive that.
        executor: Executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    else:
        executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _windows_ahead(
    examples: Iterable[Row],
    stores: Sequence[ScoreStore],
    tokenizing: Tokenizing,
    executor: Executor,
    *,
    num_rows: int,
) -> Iterator[tuple[int, list[TokenizedExample]]]:
    """The tokenized windows that some store lacks; the next one is tokenized meanwhile."""
    upcoming: tuple[int, Future[list[TokenizedExample]]] | None = None
    seen = 0
    for index, rows in enumerate(_windows(examples)):
        seen += len(rows)
        if all(store.has_part(index) for store in stores):
            continue
        submitted = (index, executor.submit(tokenizing, rows))
        if upcoming is not None:
            yield upcoming[0], upcoming[1].result()
        upcoming = submitted
    if upcoming is not None:
        yield upcoming[0], upcoming[1].result()
    if seen != num_rows:
        raise DataError(f"the data changed while they were read: {num_rows:,} rows, then {seen:,}")


def _windows(examples: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(examples)
    while window := list(islice(rows, ROWS_PER_PART)):
        yield window


def _score_window(
    store: ScoreStore,
    index: int,
    window: Sequence[TokenizedExample],
    opened: OpenScorer,
    *,
    token_budget: int,
    advance: Callable[[int], None],
) -> pa.Table:
    """The scores of one window in the order of its rows; batches in its journal are not repeated.

    The journal stays until the part is written.
    """
    scorable = [row for row in window if row.status == "ok"]
    left_out = [unscored(row, row.status) for row in window if row.status != "ok"]
    advance(len(left_out))
    journal = store.journal(index)
    tables = [score_table(left_out), *journal.read()]
    done = {name for table in tables[1:] for name in table["example_id"].to_pylist()}
    advance(len(done))
    with journal:
        shared = opened.begin(scorable)
        # A shared token is not computed again, but attended to.
        lengths = [row.num_tokens - shared + shared // 8 for row in scorable]
        for numbers in make_batches(lengths, token_budget=token_budget):
            batch = [scorable[i] for i in numbers if scorable[i].example_id not in done]
            if batch:
                tables.append(score_table(score_what_fits(opened.scorer, batch)))
                journal.append(tables[-1])
                advance(len(batch))
    return _in_order(pa.concat_tables(tables), window)


def _in_order(table: pa.Table, window: Sequence[TokenizedExample]) -> pa.Table:
    place = {name: row for row, name in enumerate(table["example_id"].to_pylist())}
    return table.take([place[row.example_id] for row in window]).cast(SCORE_SCHEMA)
