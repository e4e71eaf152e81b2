"""Some rows of a data file, in the file's own format."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atlantis.data.sources import begins_with_list, open_path
from atlantis.disk import write_bytes, write_table
from atlantis.errors import DataError


def write_subset(data: Path, ids: Collection[str], out: Path) -> int:
    """Copy the rows with these ids, as they are and in their order.

    Args:
        data: A JSONL, JSON or Parquet file.
        ids: Ids of the rows, as `open_path` gives them.
        out: The file to write, of the same kind.

    Returns:
        How many rows were written.

    Raises:
        DataError: ``data`` is no such file, is malformed, or ``out`` is of another kind.
    """
    kind = data.suffix.lower()
    if not data.is_file():
        raise DataError(f"{data}: a subset is made of one file; name a JSONL, JSON or Parquet file")
    if out.suffix.lower() != kind:
        raise DataError(f"{out}: the rows stay as they are; give it the ending {kind}")
    chosen = set(ids)
    located = enumerate(open_path(data).located())
    wanted = {n: where for n, (where, row) in located if row.example_id in chosen}
    if kind == ".parquet":
        write_table(out, _taken(pq.read_table(data), list(wanted)))
    elif kind == ".json" and begins_with_list(data):
        rows: Any = json.loads(data.read_text(encoding="utf-8-sig"))
        text = json.dumps([rows[number] for number in wanted], ensure_ascii=False, indent=2)
        write_bytes(out, f"{text}\n".encode())
    else:
        lines = data.read_bytes().split(b"\n")  # as the reader does, which counts them from 1
        kept = [lines[int(where.rpartition(":")[2]) - 1] for where in wanted.values()]
        write_bytes(out, b"".join(line + b"\n" for line in kept))
    return len(wanted)


def _taken(table: pa.Table, rows: list[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))
