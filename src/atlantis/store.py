"""Score stores: Parquet parts, a manifest that says what they are made of, and unfinished journals.

A folder is a result only when its ``manifest.json`` says that it is complete.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from atlantis.disk import digest_file, digest_json, read_json, read_table, write_json, write_table
from atlantis.errors import StoreError
from atlantis.journal import Journal
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
        ("num_trained_tokens", pa.int32()),
    ]
)


class ScoreStore:
    """A folder of Parquet parts with the scores of one model over one set of examples.

    A part holds a fixed slice of the rows, so that a part that is computed twice gets the same
    bytes. ``manifest.json`` says what the scores depend on and holds the checksum of every part;
    the store is complete when it says so. An unfinished part is a journal of scored batches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: model, tokenizer, rendered text, limits, dtype, versions."""
        return self._manifest()["fingerprint"]

    @property
    def digest(self) -> str:
        """Digest of the scores and of all that they depend on."""
        return digest_json(self._manifest())

    @property
    def is_complete(self) -> bool:
        """Whether every part has been written."""
        return (self.folder / MANIFEST).exists() and bool(self._manifest()["complete"])

    @property
    def num_truncated(self) -> int:
        """Rows whose end was cut off at the limit."""
        return sum(part["truncated"] for part in self._manifest()["parts"].values())

    def start(self, fingerprint: Mapping[str, Any]) -> None:
        """Begin or go on with a store; damaged parts of an earlier run are forgotten.

        Raises:
            StoreError: The folder holds scores made from something else; names the first field.
        """
        if not (self.folder / MANIFEST).exists():
            if self.folder.exists() and any(self.folder.glob("part-*.parquet")):
                raise StoreError(
                    f"{self.folder} holds parts but no manifest; choose an empty folder"
                )
            self._write_manifest(fingerprint, {}, complete=False)
            return
        check_fingerprint(self.folder, self.fingerprint, fingerprint)
        manifest = self._manifest()
        intact = {name: p for name, p in manifest["parts"].items() if self._is_intact(name, p)}
        if intact != manifest["parts"]:
            self._write_manifest(fingerprint, intact, complete=False)
        self._tidy(intact)

    def has_part(self, index: int) -> bool:
        """Whether that part has been written."""
        return self._part(index).name in self._manifest()["parts"]

    def journal(self, index: int) -> Journal:
        """The batches of a part that is not finished."""
        return Journal(self.folder / f".journal-{index:05d}")

    def write_part(self, index: int, table: pa.Table, *, num_truncated: int = 0) -> None:
        """Write one part and drop its journal; an existing part is replaced."""
        path = self._part(index)
        write_table(path, table.cast(SCORE_SCHEMA))
        manifest = self._manifest()
        part = {"sha256": digest_file(path), "rows": table.num_rows, "truncated": num_truncated}
        parts = dict(sorted((manifest["parts"] | {path.name: part}).items()))
        self._write_manifest(manifest["fingerprint"], parts, complete=False)
        self.journal(index).delete()

    def finish(self) -> None:
        """Declare the store complete."""
        manifest = self._manifest()
        self._write_manifest(manifest["fingerprint"], manifest["parts"], complete=True)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in the order of the data; join them by ``example_id``.

        Args:
            columns: Those to read; by default all. The checksum of every part is verified.

        Raises:
            StoreError: The store is incomplete or damaged.
        """
        none = SCORE_SCHEMA.empty_table().select(columns or SCORE_SCHEMA.names)
        return pa.concat_tables([none, *self.read_parts(columns)])

    def read_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows one part at a time, for stores larger than memory.

        Raises:
            StoreError: The store is incomplete or damaged.
        """
        if not self.is_complete:
            raise StoreError(
                f"{self.folder} is not a complete score store; run the scoring command again"
            )
        for name, part in self._manifest()["parts"].items():
            if not self._is_intact(name, part):
                raise StoreError(f"{self.folder / name} is damaged; run the scoring command again")
            yield read_table(self.folder / name, columns)

    def verify(self) -> int:
        """Read everything again and check what it promises.

        Returns:
            The number of rows.

        Raises:
            StoreError: A part is damaged, an id stands there twice, or numbers do not fit together.
        """
        seen: set[bytes] = set()
        for table in self.read_parts():
            for row in table.to_pylist():
                digest = hashlib.blake2b(_encoded(row["example_id"]), digest_size=16).digest()
                if digest in seen:
                    raise StoreError(f"{self.folder}: example {row['example_id']!r} stands twice")
                seen.add(digest)
                if not _is_consistent(row):
                    raise StoreError(
                        f"{self.folder}: the numbers of example {row['example_id']!r} do not fit "
                        "together; delete the folder and score again"
                    )
        return len(seen)

    def _tidy(self, parts: Mapping[str, Any]) -> None:
        """Remove what a kill left behind: unnamed files, journals of parts that were written."""
        for leftover in self.folder.glob(".tmp-*"):
            leftover.unlink()
        for name in parts:
            self.journal(int(name[len("part-") : -len(".parquet")])).delete()

    def _is_intact(self, name: str, part: Mapping[str, Any]) -> bool:
        path = self.folder / name
        return path.is_file() and digest_file(path) == part["sha256"]

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def _write_manifest(
        self, fingerprint: Mapping[str, Any], parts: Mapping[str, Any], *, complete: bool
    ) -> None:
        manifest = {"complete": complete, "fingerprint": dict(fingerprint), "parts": dict(parts)}
        write_json(self.folder / MANIFEST, manifest)

    def _manifest(self) -> dict[str, Any]:
        if not (self.folder / MANIFEST).exists():
            raise StoreError(f"{self.folder} is not a score store: it has no {MANIFEST}")
        manifest = read_json(self.folder / MANIFEST)
        if not isinstance(manifest, dict) or not {"complete", "fingerprint", "parts"} <= set(
            manifest
        ):
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


def is_made(out: Path, manifest: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a file is there already, made from the same.

    Args:
        out: The file.
        manifest: Beside it, says what it was made from.
        fingerprint: What it is to be made from.

    Raises:
        StoreError: It was made from something else, or by something else.
    """
    if not out.exists():
        return False
    if not manifest.is_file():
        raise StoreError(f"{out} holds other rows; choose another file")
    check_fingerprint(out, read_json(manifest)["fingerprint"], fingerprint)
    return True


def begin(partial: Path, fingerprint: Mapping[str, Any]) -> None:
    """Note what a folder is being made from, or see that it was begun from the same.

    Raises:
        StoreError: It was begun from something else.
    """
    manifest = partial / MANIFEST
    if manifest.exists():
        check_fingerprint(partial, read_json(manifest)["fingerprint"], fingerprint)
    else:
        write_json(manifest, {"complete": False, "fingerprint": dict(fingerprint)})


def score_table(rows: Sequence[TokenScores]) -> pa.Table:
    """Scores as the columns of the store."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCORE_SCHEMA.names}
    return pa.table(columns, schema=SCORE_SCHEMA)


def _is_consistent(row: Mapping[str, Any]) -> bool:
    logprobs = row["token_logprobs"]
    if row["status"] != "ok":
        return all(row[name] is None for name in SCORE_SCHEMA.names[2:])
    if None in row.values() or len(logprobs) != row["num_tokens"]:
        return False
    total = math.fsum(logprobs)
    return math.isfinite(total) and math.isclose(total, row["sequence_logprob"], rel_tol=1e-9)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
