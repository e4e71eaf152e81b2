"""Data sets of the Hugging Face Hub, and those that `datasets` saved to disk."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atlantis.data import files
from atlantis.data.files import LocatedObject
from atlantis.data.tables import BATCH_ROWS, located_rows
from atlantis.errors import DataError

PREFIX = "hub:"
_FORM = "hub:NAME[:config][:split], such as hub:openai/gsm8k:main:train or hub:NAME::test"


class HubName(NamedTuple):
    """What ``hub:NAME[:config][:split]`` names."""

    name: str
    config: str | None
    split: str


def parse_hub_name(data: str) -> HubName:
    """The parts of ``hub:NAME[:config][:split]``; the split is ``train`` unless named.

    Raises:
        DataError: There is no name, or more parts than these.
    """
    name, *rest = data.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise DataError(f"{files.shorten(data)}: write {_FORM}")
    config, split = (*rest, "", "")[:2]
    return HubName(name, config or None, split or "train")


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """The rows of one split of a data set, which lies on disk and is not read as a whole."""

    name: str
    dataset: Any
    wanted: Collection[str]

    def __call__(self) -> Iterator[LocatedObject]:
        """The rows, each with its place (``name:row number``, from 0)."""
        tables = self.dataset.with_format("arrow").iter(BATCH_ROWS)
        batches = (batch for table in tables for batch in table.to_batches())
        names = self.dataset.column_names
        return located_rows(batches, self.name, names=names, wanted=self.wanted)


def open_hub(data: str, *, wanted: Collection[str]) -> DatasetRows:
    """A data set of the Hub, by ``hub:NAME[:config][:split]``, from the cache or downloaded.

    Raises:
        DataError: There is no such data set, or it cannot be reached.
    """
    import datasets

    name, config, split = parse_hub_name(data)
    dataset = _loaded(lambda: datasets.load_dataset(name, config, split=split), data)
    return DatasetRows(data, dataset, wanted)


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the library `datasets` made this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def open_saved(folder: Path, *, wanted: Collection[str]) -> DatasetRows:
    """A data set that ``save_to_disk`` wrote.

    Raises:
        DataError: It is damaged, or it is a folder of several splits.
    """
    import datasets

    dataset = _loaded(lambda: datasets.load_from_disk(str(folder)), str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        splits = [str(split) for split in dataset]
        raise DataError(
            f"{folder}: holds the splits {', '.join(splits)}; name the folder of one, such as "
            f"{folder / splits[0]}"
        )
    return DatasetRows(str(folder), dataset, wanted)


def _loaded(load: Callable[[], Any], name: str) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return load()
    # What `datasets` raises for what is missing, misspelt, offline or damaged.
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, DatasetsError) as error:
        raise DataError(
            f"{name}: cannot be loaded ({files.one_line(error)}); correct the name, or download "
            f"it first and give its files; a Hub data set is {_FORM}"
        ) from error
