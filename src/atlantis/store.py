"""Results on disk: atomic files, complete folders, Parquet score parts.

A file appears under its final name only when it is whole (temporary file, fsync, rename), and a
folder is a result only when its ``manifest.json``, written last, is there. Nothing here holds a
clock or a random number, so that the same work gives the same bytes.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atlantis.errors import DataError, ResumableError, StoreError
from atlantis.records import TokenScores

MANIFEST = "manifest.json"

SCORE_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("status", pa.string()),
        ("num_tokens", pa.int32()),
        ("num_bytes", pa.int32()),
        ("sequence_logprob", pa.float64()),
        ("token_logprobs", pa.list_(pa.float32())),
    ]
)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, then fsync and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys in their order; NaN and infinities are refused (`ValueError`)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8; lone surrogates pass through."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with page checksums; the same table gives the same bytes."""
    write_atomically(
        path,
        lambda temporary: pq.write_table(
            table, temporary, compression="zstd", write_page_checksum=True
        ),
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file and verify its page checksums.

    Raises:
        StoreError: It is missing, damaged, or lacks a column.
    """
    try:
        return pq.read_table(
            path,
            columns=None if columns is None else list(columns),
            page_checksum_verification=True,
        )
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path}: not a readable Parquet file ({reason})") from None


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value with sorted keys, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def exclusive(folder: Path) -> Generator[None]:
    """Hold a folder against a second writer; a dead process holds nothing.

    Raises:
        ResumableError: Another process is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise ResumableError(
                f"{folder} is in use by another process ({owner}); wait for it or stop it"
            ) from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield


class ScoreStore:
    """A folder of Parquet parts with the scores of one model over one set of examples.

    A part holds a fixed slice of the work, so a part that is computed twice overwrites itself with
    the same bytes, and the store is complete when all of its parts are there and ``manifest.json``
    says so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: model, tokenizer, rendered text, limits, dtype, versions."""
        return self._manifest()["fingerprint"]

    @property
    def is_complete(self) -> bool:
        """Whether every part has been written."""
        return (self.folder / MANIFEST).exists() and bool(self._manifest()["complete"])

    def start(self, fingerprint: Mapping[str, Any]) -> None:
        """Begin or go on with a store.

        Raises:
            StoreError: The folder holds scores made from something else; names the first field.
        """
        if (self.folder / MANIFEST).exists():
            check_fingerprint(self.folder, self.fingerprint, fingerprint)
            return
        if self.folder.exists() and any(self.folder.glob("part-*.parquet")):
            raise StoreError(f"{self.folder} holds parts but no manifest; choose an empty folder")
        write_json(
            self.folder / MANIFEST,
            {"complete": False, "fingerprint": dict(fingerprint), "parts": {}},
        )

    def has_part(self, index: int) -> bool:
        """Whether a readable part of that number is there."""
        path = self._part(index)
        if not path.exists():
            return False
        try:
            read_table(path)
        except StoreError:
            return False
        return True

    def repair(self) -> None:
        """Remove the damaged parts of a complete store, so that they are computed again."""
        if not self.is_complete:
            return
        parts = self._manifest()["parts"]
        damaged = [name for name, digest in parts.items() if not self._is_intact(name, digest)]
        if damaged:
            fingerprint = self.fingerprint
            write_json(
                self.folder / MANIFEST, {"complete": False, "fingerprint": fingerprint, "parts": {}}
            )
            for name in damaged:
                (self.folder / name).unlink(missing_ok=True)

    def write_part(self, index: int, rows: Iterable[TokenScores]) -> None:
        """Write one part; an existing one is replaced."""
        write_table(self._part(index), _score_table(list(rows)))

    def finish(self, num_parts: int) -> None:
        """Record every part's checksum and declare the store complete."""
        parts = {self._part(i).name: digest_file(self._part(i)) for i in range(num_parts)}
        manifest = {"complete": True, "fingerprint": self.fingerprint, "parts": parts}
        write_json(self.folder / MANIFEST, manifest)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, in the order of the parts; join them by ``example_id``.

        Raises:
            StoreError: The store is incomplete or damaged.
        """
        if not self.is_complete:
            raise StoreError(
                f"{self.folder} is not a complete score store; run the scoring command again"
            )
        parts = self._manifest()["parts"]
        names = sorted(parts)
        for name in names:
            if not self._is_intact(name, parts[name]):
                raise StoreError(f"{self.folder / name} is damaged; run the scoring command again")
        tables = [read_table(self.folder / name, columns) for name in names]
        if not tables:
            return SCORE_SCHEMA.empty_table().select(columns or SCORE_SCHEMA.names)
        return pa.concat_tables(tables)

    def _is_intact(self, name: str, digest: str) -> bool:
        path = self.folder / name
        return path.is_file() and digest_file(path) == digest

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def _manifest(self) -> dict[str, Any]:
        if not (self.folder / MANIFEST).exists():
            raise StoreError(f"{self.folder} is not a score store: it has no {MANIFEST}")
        manifest = read_json(self.folder / MANIFEST)
        if not isinstance(manifest, dict) or "parts" not in manifest:
            raise StoreError(f"{self.folder} is not a score store: its {MANIFEST} has no parts")
        return manifest


def check_fingerprint(where: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a result that was made from something else.

    Raises:
        StoreError: Some field differs; the message names the first one with both values.
    """
    for field in sorted(found.keys() | expected.keys()):
        if found.get(field) != expected.get(field):
            raise StoreError(
                f"{where} was made with {field} = {found.get(field)!r}, but now it is "
                f"{expected.get(field)!r}; choose another folder or delete this one"
            )


def _score_table(rows: list[TokenScores]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SCORE_SCHEMA.names}
    return pa.table(columns, schema=SCORE_SCHEMA)
