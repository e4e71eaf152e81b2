"""Results of unfinished work, one batch at a time: what a kill leaves is whole batches.

A record is its length, its CRC-32 and a table in Arrow's stream format. A record that was cut off,
or whose checksum differs, ends the journal: it and what follows is computed again. Nothing is
synced to disk here; a part under its final name is.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from atlantis.disk import write_all

_HEADER = struct.Struct("<QI")


class Journal:
    """A file of tables that grows at its end. A context manager; use it before appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = None

    def read(self) -> list[pa.Table]:
        """The whole records, in order; none where there is no journal."""
        if not self.path.exists():
            return []
        return [table for table, _ in _records(self.path.read_bytes())]

    def __enter__(self) -> Self:
        """Open for appending after the last whole record."""
        intact = 0
        if self.path.exists():
            intact = max((end for _, end in _records(self.path.read_bytes())), default=0)
        self._handle = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        self._handle.truncate(intact)
        self._handle.seek(intact)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; it stays."""
        assert self._handle is not None
        self._handle.close()
        self._handle = None

    def append(self, table: pa.Table) -> None:
        """Add one record.

        Raises:
            OSError: The disk is full or fails; what was there before is intact.
        """
        assert self._handle is not None, "open the journal first"
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = sink.getvalue().to_pybytes()
        write_all(self._handle.fileno(), _HEADER.pack(len(content), zlib.crc32(content)) + content)

    def delete(self) -> None:
        """Remove the file; nothing happens where there is none."""
        self.path.unlink(missing_ok=True)


def _records(content: bytes) -> Iterator[tuple[pa.Table, int]]:
    """Each whole record with the position after it."""
    position = 0
    while position + _HEADER.size <= len(content):
        length, checksum = _HEADER.unpack_from(content, position)
        end = position + _HEADER.size + length
        body = content[position + _HEADER.size : end]
        if end > len(content) or zlib.crc32(body) != checksum:
            return
        with pa.ipc.open_stream(body) as stream:
            yield stream.read_all(), end
        position = end
