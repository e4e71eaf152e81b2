"""Training data wherever it lies: files, folders of shards, and data sets of the Hub.

A `Source` can be read again and again, and holds a bounded number of rows in memory, and 8 bytes
for the id of each.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from atlantis.data import files, hub
from atlantis.data.columns import READ_COLUMNS, read_row
from atlantis.data.files import LocatedObject
from atlantis.data.ids import SeenIds, id_digest
from atlantis.data.tables import read_parquet
from atlantis.errors import DataError
from atlantis.records import Example, Row

_SPLIT = re.compile(r"(train|test|valid|validation|val|dev|eval)(?![a-z])")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_METADATA = ("dataset_info.json", "dataset_infos.json")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one format. Each pass reads them anew; `open_source` makes one."""

    name: str
    raw_rows: Callable[[], Iterator[LocatedObject]]

    def __iter__(self) -> Iterator[Row]:
        """The rows in order.

        Ids are compared in blocks, so that a repeated one is noticed some thousand rows late, but
        always before the pass ends.

        Raises:
            DataError: A row is malformed or of another format than the first, two rows have one
                id, or there is no row.
        """
        seen = SeenIds()
        number = 0
        for number, (_, row) in enumerate(self.located(), start=1):
            self._refuse_repeated(seen.add(row.example_id), number)
            yield row
        self._refuse_repeated(seen.repeated(), number)
        if number == 0:
            raise DataError(f"{self.name}: no rows (empty); check the file")

    def located(self) -> Iterator[tuple[str, Row]]:
        """The rows, each with its place; whether ids are unique is not checked."""
        first: tuple[str, str] | None = None
        for where, columns in self.raw_rows():
            name, row = read_row(columns, where)
            first = first or (name, where)
            if name != first[0]:
                raise DataError(
                    f"{where}: is {name}, but {first[1]} is {first[0]}; keep one format"
                )
            yield where, row

    def _refuse_repeated(self, suspects: set[int], num_rows: int) -> None:
        """Reads the rows again to find where an id stands that was seen twice."""
        places: dict[str, str] = {}
        for where, row in islice(self.located(), num_rows) if suspects else ():
            if id_digest(row.example_id) in suspects:
                first = places.setdefault(row.example_id, where)
                if first != where:
                    raise DataError(
                        f"{where}: id {row.example_id!r} already stands at {first} (ids that occur "
                        f"twice so far: {len(suspects)}); remove one row or give it an "
                        "`example_id` of its own (without one, the id follows from the content)"
                    )


@dataclass(frozen=True, slots=True)
class GivenRows:
    """Rows made in Python, held to what a file's rows are held to."""

    rows: Iterable[Row]

    def __iter__(self) -> Iterator[Row]:
        """The rows in order.

        Raises:
            DataError: An id stands there twice, a text is empty or cannot be written as UTF-8, or
                there is no row.
        """
        seen, is_empty = SeenIds(), True
        for row in self.rows:
            is_empty = False
            where = f"example {row.example_id!r}"
            files.as_text(row.example_id, f"{where}: id")
            if isinstance(row, Example):
                files.as_text(row.prompt, f"{where}: prompt")
                files.as_text(row.completion, f"{where}: completion")
            elif not row.learnt:
                raise DataError(f"{where}: no turn is learnt; name one in `learnt`")
            self._refuse_repeated(seen.add(row.example_id))
            yield row
        self._refuse_repeated(seen.repeated())
        if is_empty:
            raise DataError("no examples; give at least one")

    def _refuse_repeated(self, suspects: set[int]) -> None:
        counts = Counter(
            row.example_id
            for row in self.rows
            if suspects and id_digest(row.example_id) in suspects
        )
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(f"id {twice[0]!r} occurs twice; give every example an id of its own")


def open_source(data: str, *, also: Iterable[str] = ()) -> Source:
    """What ``DATA`` names.

    Args:
        data: A JSONL, JSON or Parquet file, a folder of such files (read in the order of their
            names), a folder of ``datasets``' ``save_to_disk``, or ``hub:NAME[:config][:split]``.
        also: Columns to read besides those of the formats.

    Raises:
        DataError: There is no such thing, or no telling what it is.
    """
    try:
        is_there = Path(data).exists()
    except OSError as error:
        raise DataError(f"{files.shorten(data)}: no path ({error.strerror}); correct it") from error
    if data.startswith(hub.PREFIX) and not is_there:
        return Source(data, hub.open_hub(data, wanted=READ_COLUMNS | set(also)))
    return open_path(Path(data), also=also)


def open_path(path: Path, *, also: Iterable[str] = ()) -> Source:
    """A file or a folder; see `open_source`.

    Raises:
        DataError: There is no such thing, or no telling what it is.
    """
    wanted = READ_COLUMNS | set(also)
    if path.is_dir():
        return Source(str(path), _folder_rows(path, wanted))
    if not path.is_file():
        raise DataError(
            f"{path}: no such file or folder; correct the path, or write "
            "hub:NAME for a data set of the Hugging Face Hub"
        )
    return Source(str(path), _file_rows(path, wanted))


def _file_rows(path: Path, wanted: frozenset[str]) -> Callable[[], Iterator[LocatedObject]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return partial(read_parquet, path, wanted=wanted)
    if suffix not in _SUFFIXES:
        raise DataError(f"{path}: unknown kind of file; use {', '.join(_SUFFIXES)}")
    if suffix == ".json" and begins_with_list(path):
        return partial(files.read_json_array, path)
    return partial(files.read_json_lines, path)


def begins_with_list(path: Path) -> bool:
    """Whether a JSON file holds one list, and not an object per line."""
    with files.open_file(path) as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _is_shard(name: str) -> bool:
    """Whether a name is that of data; begun with a dot or underscore, other tools hide it too."""
    return name.lower().endswith(_SUFFIXES) and name[0] not in "._" and name not in _METADATA


def _folder_rows(folder: Path, wanted: frozenset[str]) -> Callable[[], Iterator[LocatedObject]]:
    if hub.is_saved_dataset(folder):
        return hub.open_saved(folder, wanted=wanted)
    shards = sorted(path for path in folder.iterdir() if _is_shard(path.name))
    kinds = sorted({path.suffix.lower() for path in shards})
    if len(kinds) != 1:
        raise DataError(
            f"{folder}: {'files of several kinds, ' + ' and '.join(kinds) if kinds else 'no data'}"
            f"; a folder of shards holds {' or '.join(_SUFFIXES)} files of one kind"
        )
    splits = {match.group(1): path for path in shards if (match := _SPLIT.match(path.name))}
    if len(splits) > 1:
        raise DataError(
            f"{folder}: holds the splits {', '.join(sorted(splits))}; name one file, or put the "
            "shards of one split into a folder of their own"
        )
    parts = [_file_rows(path, wanted) for path in shards]
    return lambda: chain.from_iterable(part() for part in parts)
