"""Several models in one pass: the bytes of each alone, one reading of the rows, kills."""

import random

import pytest
from transformers import AutoTokenizer

from atlantis import api
from atlantis.errors import ConfigError, StoreError
from atlantis.records import Example
from atlantis.scoring import windows
from atlantis.scoring.backends import TransformersBackend

WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]


class Rows:
    """Rows that count how often they are read."""

    def __init__(self, num_rows=22):
        draw = random.Random(3)
        self._rows = [
            Example(
                f"r{row}",
                " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
                " " + " ".join(draw.choices(WORDS, k=draw.randint(1, 6))),
            )
            for row in range(num_rows)
        ]
        self.num_readings = 0

    def __iter__(self):
        self.num_readings += 1
        return iter(self._rows)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(windows, "ROWS_PER_PART", 4)


@pytest.fixture(scope="module")
def models(saved_model):
    return {"small": str(saved_model("qwen2")), "reference": str(saved_model("qwen2", seed=1))}


@pytest.fixture
def other_tokenizer(saved_model):
    """A model that has one more word."""
    folder = saved_model("qwen2", vocab_size=400)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["storm"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture
def alone(models, tmp_path):
    """Each model's store from a run of its own."""
    return {
        name: content(api.score(Rows(), model=model, out=tmp_path / "alone" / name).folder)
        for name, model in models.items()
    }


@pytest.fixture
def windows_tokenized(monkeypatch):
    seen = []
    tokenize = windows.Tokenizing.__call__

    def counting(self, rows):
        seen.append(len(rows))
        return tokenize(self, rows)

    monkeypatch.setattr(windows.Tokenizing, "__call__", counting)
    return seen


def test_each_store_has_the_bytes_of_a_pass_of_its_own(models, alone, tmp_path, windows_tokenized):
    rows = Rows()
    stores = api.score_models(rows, models, out=tmp_path / "out")
    assert {name: content(store.folder) for name, store in stores.items()} == alone
    assert stores["small"].read().num_rows == 22
    assert list(stores) == list(models)


def test_the_rows_are_read_and_tokenized_once_for_all(models, tmp_path, windows_tokenized):
    rows = Rows()
    api.score_models(rows, models, out=tmp_path / "out")
    assert windows_tokenized == [4, 4, 4, 4, 4, 2]
    single = Rows()
    api.score(single, model=models["small"], out=tmp_path / "one")
    assert rows.num_readings == single.num_readings


@pytest.mark.parametrize("num_calls", [0, 1, 5, 12])
def test_a_stopped_pass_goes_on_for_each_model_where_it_was(
    models, alone, tmp_path, monkeypatch, num_calls
):
    class StopError(Exception):
        pass

    calls = iter(range(num_calls))
    write = windows.ScoreStore.write_part

    def stopping(self, *arguments, **options):
        if next(calls, None) is None:
            raise StopError
        write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(windows.ScoreStore, "write_part", stopping)
        patch.setattr(windows.ScoreStore, "finish", stopping)
        with pytest.raises(StopError):
            api.score_models(Rows(), models, out=tmp_path / "out")
    api.score_models(Rows(), models, out=tmp_path / "out")
    found = {name: content(tmp_path / "out" / name) for name in models}
    assert found == alone


def test_a_model_that_was_scored_before_is_left_alone(models, alone, tmp_path, monkeypatch):
    api.score(Rows(), model=models["small"], out=tmp_path / "out" / "small")
    opened = []
    open_ = TransformersBackend.open

    def counting(self, model, rows):
        opened.append(model.name)
        return open_(self, model, rows)

    monkeypatch.setattr(TransformersBackend, "open", counting)
    stores = api.score_models(Rows(), models, out=tmp_path / "out")
    assert opened == [models["reference"]]
    assert {name: content(store.folder) for name, store in stores.items()} == alone


def test_models_of_other_tokenizers_have_a_pass_of_their_own(
    models, other_tokenizer, alone, tmp_path, windows_tokenized
):
    several = models | {"other": other_tokenizer}
    stores = api.score_models(Rows(), several, out=tmp_path / "out")
    assert {name: content(stores[name].folder) for name in models} == alone
    assert len(windows_tokenized) == 6 + 6
    lengths = [stores[name].read()["num_tokens"].to_pylist() for name in ("small", "other")]
    assert lengths[0] != lengths[1]


def test_scores_of_other_rows_are_refused_before_any_model_is_loaded(models, tmp_path, monkeypatch):
    api.score(Rows(21), model=models["small"], out=tmp_path / "out" / "small")
    monkeypatch.setattr("atlantis.scoring.backends.load_model", None)
    with pytest.raises(StoreError, match="rendered_text"):
        api.score_models(Rows(), models, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "no model is given"),
        (("a/b",), {}, "model name 'a/b': use letters"),
        (("..",), {}, "model name '..': use letters"),
        (("a", "b"), {"adapter": "x"}, "adapter belongs to one model"),
        (("a", "b"), {"revision": "x"}, "revision belongs to one model"),
        (("a", "b"), {"backend": "vllm"}, "backend vllm holds one model"),
    ],
)
def test_what_cannot_be_done_for_several_is_refused(tmp_path, names, options, message):
    with pytest.raises(ConfigError, match=message):
        api.score_models(Rows(), dict.fromkeys(names, "model"), out=tmp_path, **options)


def test_an_unknown_option_is_an_error_of_the_call(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_len'"):
        api.score_models(Rows(), {"a": "model"}, out=tmp_path, max_len=3)
