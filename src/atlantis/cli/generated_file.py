"""A file of generated rows: whole or not at all, going on after a kill, from one set of inputs.

While it grows, finished batches stand in a journal in ``FILE.partial``. What the rows were made
from is kept in ``FILE.manifest.json``.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from atlantis.disk import exclusive, read_json, write_json, write_text
from atlantis.errors import StoreError
from atlantis.journal import Journal
from atlantis.store import check_fingerprint


class Line(NamedTuple):
    """One row of the file."""

    position: int
    """Where it stands, counted from 0."""
    text: str
    """The row as JSON, without a line break."""


def write_once(
    out: Path,
    fingerprint: Mapping[str, Any],
    num_batches: int,
    work: Callable[[Sequence[int]], Iterator[Sequence[Line]]],
) -> bool:
    """Let ``work`` make the lines of a file, unless the same file is there already.

    Args:
        out: The file.
        fingerprint: All that its rows depend on, JSON.
        num_batches: How many batches there are.
        work: Makes the lines of the batches that it is given by number, one batch after the other.

    Returns:
        Whether anything had to be done.

    Raises:
        StoreError: The file was made from something else, or by something else.
        ResumableError: Another process is making it.
    """
    manifest = out.with_name(f"{out.name}.manifest.json")
    if out.exists():
        if not manifest.is_file():
            raise StoreError(f"{out} holds other rows; choose another file")
        check_fingerprint(out, read_json(manifest)["fingerprint"], fingerprint)
        return False
    partial = out.with_name(f"{out.name}.partial")
    with exclusive(partial):
        lines = _all_lines(partial, fingerprint, num_batches, work)
        write_json(manifest, {"fingerprint": dict(fingerprint)})
        write_text(out, "".join(f"{line.text}\n" for line in sorted(lines)))
        shutil.rmtree(partial)
    return True


def _all_lines(
    partial: Path,
    fingerprint: Mapping[str, Any],
    num_batches: int,
    work: Callable[[Sequence[int]], Iterator[Sequence[Line]]],
) -> list[Line]:
    begun = partial / "manifest.json"
    if begun.exists():
        check_fingerprint(partial, read_json(begun)["fingerprint"], fingerprint)
    else:
        write_json(begun, {"fingerprint": dict(fingerprint)})
    journal = Journal(partial / "journal")
    tables = journal.read()
    done = {int(table["batch"][0].as_py()) for table in tables}
    left = [batch for batch in range(num_batches) if batch not in done]
    with journal:
        for batch, lines in zip(left, work(left), strict=True):
            columns = {
                "batch": [batch] * len(lines),
                "position": [line.position for line in lines],
                "text": [line.text for line in lines],
            }
            tables.append(pa.table(columns))
            journal.append(tables[-1])
    return [
        Line(int(row["position"]), str(row["text"]))
        for table in tables
        for row in table.select(["position", "text"]).to_pylist()
    ]
