"""Rows of Arrow tables: Parquet files, and data sets of the `datasets` library."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from atlantis.data import files
from atlantis.data.files import JsonObject, LocatedObject
from atlantis.errors import DataError

BATCH_ROWS = 256
"""Rows in memory at a time; few, since one row may hold a megabyte."""

_BUFFER_BYTES = 1 << 20
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def read_parquet(path: Path, *, wanted: Collection[str]) -> Iterator[LocatedObject]:
    """The rows of a Parquet file, each with its place (``file:row number``, from 0).

    Args:
        path: The file. A small part of it is in memory at a time.
        wanted: Names of the columns to read. Others stand in the row as None.

    Raises:
        DataError: The file is missing or damaged, or two columns have one name.
    """
    try:
        # With a buffer, a column of a row group is not read as a whole.
        with (
            files.open_file(path) as raw,
            pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, page_checksum_verification=True) as file,
        ):
            names = _unique_names(file.schema_arrow, str(path))
            columns = [name for name in names if name in wanted]
            batches = file.iter_batches(BATCH_ROWS, columns=columns)
            yield from located_rows(batches, str(path), names=names, wanted=wanted)
    except DataError:
        raise
    # Damage surfaces as any of these: as ValueError where Arrow decodes a name.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: Parquet that cannot be read ({files.one_line(error)}); write it again"
        ) from error


def _unique_names(schema: pa.Schema, where: str) -> Sequence[str]:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one")
    return schema.names


def located_rows(
    batches: Iterable[pa.RecordBatch], where: str, *, names: Sequence[str], wanted: Collection[str]
) -> Iterator[LocatedObject]:
    """The rows of Arrow batches, counted from 0 throughout.

    Arrow gives every object of a column the same keys and fills those that it lacks with null, so
    null keys are left out. Columns of JSON (`datasets` makes them of objects without a common
    form) are parsed.
    """
    number = 0
    unread = dict.fromkeys(names)
    for batch in batches:
        for values in _python_rows(batch, f"{where}:row", number):
            place = f"{where}:row {number}"
            row: JsonObject = dict(unread)
            for field in batch.schema:
                if field.name in wanted:
                    at = f"{place}: {field.name}"
                    row[field.name] = _plain(values[field.name], field.type, at)
            yield place, row
            number += 1


def _python_rows(batch: pa.RecordBatch, where: str, first: int) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (UnicodeDecodeError, ValueError) as error:
        bad = next(index for index in range(len(batch)) if not _is_readable(batch.slice(index, 1)))
        raise DataError(
            f"{where} {first + bad}: cannot be read ({files.one_line(error)}); correct it"
        ) from error


def _is_readable(batch: pa.RecordBatch) -> bool:
    try:
        batch.to_pylist()
    except (UnicodeDecodeError, ValueError):
        return False
    return True


def _plain(value: object, kind: pa.DataType, where: str) -> object:
    if value is None or pa.types.is_string(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return files.parse_json(files.as_string(value, where), where)
    if pa.types.is_struct(kind):
        fields = [(field, cast("JsonObject", value)[field.name]) for field in cast("Any", kind)]
        return {
            field.name: _plain(inner, field.type, where)
            for field, inner in fields
            if inner is not None
        }
    if any(is_list(kind) for is_list in _LISTS):
        inner_kind = cast("Any", kind).value_type
        return [_plain(item, inner_kind, where) for item in cast("list[object]", value)]
    return value
