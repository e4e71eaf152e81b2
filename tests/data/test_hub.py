"""Data sets of the Hub and of `save_to_disk`; nothing here needs a network."""

import datasets
import pytest
from datasets import Dataset, DatasetDict

from atlantis.data.hub import HubName, parse_hub_name
from atlantis.data.sources import open_source
from atlantis.errors import DataError
from atlantis.records import Conversation, Example

CHATS = [
    {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "A"}]}
    for n in range(600)
]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("hub:a/b", HubName("a/b", None, "train")),
        ("hub:a/b:main", HubName("a/b", "main", "train")),
        ("hub:a/b::test", HubName("a/b", None, "test")),
        ("hub:a/b:main:test[:10%]", None),
        ("hub:a/b:main:test", HubName("a/b", "main", "test")),
        ("hub:", None),
        ("hub::x", None),
    ],
)
def test_hub_names_have_three_parts(data, expected):
    if expected is not None:
        assert parse_hub_name(data) == expected
        return
    with pytest.raises(DataError, match=r"write hub:NAME\[:config\]\[:split\], such as"):
        parse_hub_name(data)


def test_rows_of_a_saved_data_set_are_read_again_and_again(tmp_path):
    Dataset.from_list(CHATS).shuffle(seed=0).save_to_disk(tmp_path / "d")
    source = open_source(str(tmp_path / "d"))
    rows = list(source)
    assert rows == list(source)
    assert all(isinstance(row, Conversation) for row in rows)
    questions = [row.messages[0]["content"] for row in rows]
    assert sorted(questions) == sorted(f"Q{n}" for n in range(600))
    assert questions[:2] != ["Q0", "Q1"]  # in the order that was saved
    assert next(source.located())[0] == f"{tmp_path / 'd'}:row 0"


def test_a_saved_data_set_of_several_splits_is_refused_with_their_folders(tmp_path):
    both = DatasetDict({"train": Dataset.from_list(CHATS), "test": Dataset.from_list(CHATS[:1])})
    both.save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"holds the splits train, test; name .* .*d/train"):
        open_source(str(tmp_path / "d"))
    assert len(list(open_source(str(tmp_path / "d" / "test")))) == 1


def test_a_damaged_saved_data_set_is_refused(tmp_path):
    Dataset.from_list(CHATS).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="d: cannot be loaded"):
        open_source(str(tmp_path / "d"))


def test_a_data_set_of_the_hub_is_loaded_by_name_config_and_split(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    Dataset.from_list([{"instruction": "Add.", "output": "2"}]).to_parquet(
        tmp_path / "repository" / "test-00000-of-00001.parquet"
    )
    asked = []
    load_dataset = datasets.load_dataset

    def load(name, config, **options):
        asked.append((name, config, options))
        return load_dataset(
            str(tmp_path / "repository"), config, cache_dir=str(tmp_path / "cache"), **options
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("hub:a/b::test")
    (row,) = source
    assert asked == [("a/b", None, {"split": "test"})]
    assert isinstance(row, Example)
    assert next(source.located())[0] == "hub:a/b::test:row 0"
    with pytest.raises(DataError, match=r"hub:a/b: cannot be loaded \(Unknown split"):
        open_source("hub:a/b")
    with pytest.raises(DataError, match=r"hub:a/b:x:test: cannot be loaded \(BuilderConfig"):
        open_source("hub:a/b:x:test")


def test_a_data_set_that_cannot_be_reached_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"hub:no/such: cannot be loaded .*; correct the name"
    ) as error:
        open_source("hub:no/such")
    assert "\n" not in str(error.value)
