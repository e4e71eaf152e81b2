"""The scoring stage: resuming, refusals, and damage, on real (tiny) models from disk."""

import itertools
import json
import shutil

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from atlantis.data.tokenization import tokenize
from atlantis.errors import DataError, ModelError, StoreError
from atlantis.models.loading import LoadingConfig, load_tokenizer
from atlantis.records import Example
from atlantis.scoring import backends, stage, windows
from atlantis.scoring.stage import ScoringConfig
from atlantis.scoring.transformers_scorer import TransformersScorer
from atlantis.store import MANIFEST, SCORE_SCHEMA

CPU = LoadingConfig(device="cpu")
CONFIG = ScoringConfig(max_length=64, token_budget=40)
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
EXAMPLES = [
    *(
        Example(f"r{i}", " ".join(WORDS[: 1 + i % 7]), " " + " ".join(WORDS[i % 5 : 6 + i % 4]))
        for i in range(14)
    ),
    Example("long", "the " * 80, " box"),
    Example("empty", "the", ""),
]


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(windows, "ROWS_PER_PART", 4)


def score(model, out, *, examples=EXAMPLES, config=CONFIG, loading=CPU):
    return stage.prepare(examples, model, config=config, loading=loading).run(out)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def complete(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "ROWS_PER_PART", 4)
        return score(model, tmp_path_factory.mktemp("store") / "scores").folder


def interrupted(complete, folder, parts):
    """What a run leaves that was killed when only these parts were written."""
    folder.mkdir()
    manifest = json.loads((complete / MANIFEST).read_text())
    names = [f"part-{index:05d}.parquet" for index in parts]
    for name in names:
        shutil.copyfile(complete / name, folder / name)
    manifest["parts"] = {name: manifest["parts"][name] for name in sorted(names)}
    manifest["complete"] = False
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def test_scores_equal_automodel_logits(model, complete):
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    rows = stage.ScoreStore(complete).read().to_pylist()
    tokenized = {
        row.example_id: row for row in tokenize(EXAMPLES, load_tokenizer(model), max_length=64)
    }
    assert {row["example_id"] for row in rows} == set(tokenized)
    for row in rows:
        ids = tokenized[row["example_id"]]
        assert row["status"] == ids.status
        if row["status"] != "ok":
            assert row["sequence_logprob"] is row["token_logprobs"] is row["num_tokens"] is None
            continue
        with torch.no_grad():
            logprobs = network(torch.tensor([ids.input_ids])).logits[0].log_softmax(-1)
        expected = sum(
            logprobs[t - 1, ids.input_ids[t]].item()
            for t in range(ids.num_prompt_tokens, len(ids.input_ids) - 1)
        )
        # A float32 forward pass of the scorer against a float64 one; the bound of the issue.
        assert row["sequence_logprob"] == pytest.approx(expected, abs=1e-4)
        assert row["num_bytes"] == ids.num_bytes


def test_a_run_goes_on_from_any_subset_of_parts_with_identical_bytes(model, complete, tmp_path):
    expected = content(complete)
    num_parts = len(expected) - 1
    assert num_parts >= 4
    subsets = [
        chosen
        for size in (0, 1, 2, num_parts)
        for chosen in itertools.combinations(range(num_parts), size)
    ][::3]
    for number, parts in enumerate([*subsets, tuple(range(num_parts))]):
        folder = tmp_path / str(number)
        interrupted(complete, folder, parts)
        assert not stage.ScoreStore(folder).is_complete
        assert score(model, folder).is_complete
        assert content(folder) == expected


def test_parts_that_are_there_are_not_computed_again(model, complete, tmp_path, monkeypatch):
    interrupted(complete, tmp_path / "s", range(len(content(complete)) - 1))
    monkeypatch.setattr(backends, "load_model", lambda *_: pytest.fail("loaded the model"))
    score(model, tmp_path / "s")


def test_a_complete_store_is_returned_as_it_is(model, complete, monkeypatch):
    before = content(complete)
    monkeypatch.setattr(backends, "load_model", lambda *_: pytest.fail("loaded the model"))
    assert score(model, complete).is_complete
    assert content(complete) == before


def test_two_runs_write_the_same_bytes(model, complete, tmp_path):
    assert content(score(model, tmp_path / "again").folder) == content(complete)


def test_the_device_that_auto_finds_is_the_one_named(model, complete, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("auto means another device here")
    auto = score(model, tmp_path / "auto", loading=LoadingConfig(device="auto")).folder
    assert content(auto) == content(complete)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_part_of_an_unfinished_store_is_computed_again(model, complete, tmp_path, damage):
    folder = tmp_path / "s"
    interrupted(complete, folder, range(len(content(complete)) - 1))
    spoil(folder / "part-00001.parquet", damage)
    score(model, folder)
    assert content(folder) == content(complete)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "exchanged"])
def test_a_damaged_part_of_a_finished_store_is_computed_again(model, complete, tmp_path, damage):
    folder = tmp_path / "s"
    shutil.copytree(complete, folder)
    spoil(folder / "part-00001.parquet", damage)
    score(model, folder)
    assert content(folder) == content(complete)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "exchanged"])
def test_a_damaged_part_is_never_read(complete, tmp_path, damage):
    folder = tmp_path / "s"
    shutil.copytree(complete, folder)
    spoil(folder / "part-00001.parquet", damage)
    with pytest.raises(StoreError, match="part-00001"):
        stage.ScoreStore(folder).read()


def spoil(path, damage):
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "exchanged":  # a readable part, but not the one that was written
        shutil.copyfile(path.with_name("part-00002.parquet"), path)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = content.index(b"PAR1") + 60
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])


@pytest.fixture(scope="module")
def other_model(saved_model):
    return str(saved_model("qwen2", seed=7))


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_store_of_another_model_is_refused(other_model, complete, tmp_path, is_complete):
    folder = tmp_path / "s"
    if is_complete:
        shutil.copytree(complete, folder)
    else:
        interrupted(complete, folder, [0])
    before = content(folder)
    with pytest.raises(StoreError, match="was made with model = "):
        score(other_model, folder)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"examples": EXAMPLES[:-1]}, "rendered_text"),
        ({"examples": EXAMPLES[::-1]}, "rendered_text"),
        ({"config": ScoringConfig(max_length=63, token_budget=40)}, "scoring"),
        ({"config": ScoringConfig(max_length=64, truncation="keep_prefix")}, "scoring"),
        ({"config": ScoringConfig(max_length=64, template="native")}, "scoring"),
        (
            {"config": ScoringConfig(max_length=64, token_budget=40, score_end_of_turn=True)},
            "scoring",
        ),
        ({"loading": LoadingConfig(device="cpu", dtype="bfloat16")}, "loading"),
        ({"loading": LoadingConfig(device="cpu", attention="eager")}, "loading"),
    ],
)
def test_a_store_of_other_data_or_settings_is_refused(model, complete, changes, field):
    with pytest.raises(StoreError, match=f"was made with {field} = .*choose another folder"):
        score(model, complete, **changes)


def test_another_batch_size_goes_on_with_the_same_store(model, complete, tmp_path):
    interrupted(complete, tmp_path / "s", [0, 2])
    config = ScoringConfig(max_length=64, token_budget=9)
    mixed = score(model, tmp_path / "s", config=config).read().to_pylist()
    for row, expected in zip(mixed, stage.ScoreStore(complete).read().to_pylist(), strict=True):
        assert row["sequence_logprob"] == pytest.approx(expected["sequence_logprob"], abs=1e-4)


def test_the_rows_stand_in_the_order_of_the_data(complete):
    found = stage.ScoreStore(complete).read()["example_id"].to_pylist()
    assert found == [row.example_id for row in EXAMPLES]


def test_a_batch_in_the_journal_is_not_scored_again(model, complete, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    scored = []
    original = TransformersScorer.score

    def counting(self, batch):
        scored.append([row.example_id for row in batch])
        if stop_after is not None and len(scored) > stop_after:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(TransformersScorer, "score", counting)
    stop_after = None
    score(model, tmp_path / "whole")
    num_batches = len(scored)
    assert num_batches > 6
    for stop in range(num_batches):
        scored.clear()
        stop_after = stop
        with pytest.raises(Killed):
            score(model, tmp_path / str(stop))
        stop_after = None
        score(model, tmp_path / str(stop))
        assert len(scored) == num_batches + 1  # the one that the kill hit, twice
        assert content(tmp_path / str(stop)) == content(complete)


def test_rows_that_change_between_the_passes_are_noticed(model, tmp_path):
    class Shrinking:
        def __init__(self):
            self.rows = EXAMPLES

        def __iter__(self):
            rows, self.rows = self.rows, self.rows[:-1]
            return iter(rows)

    with pytest.raises(DataError, match="16 rows, then 15"):
        score(model, tmp_path / "s", examples=Shrinking())


def test_tokenizing_in_processes_gives_the_same_bytes(model, complete, tmp_path):
    config = CONFIG.model_copy(update={"tokenizer_workers": 1})
    assert content(score(model, tmp_path / "s", config=config).folder) == content(complete)


def test_rows_cut_at_the_limit_are_scored_as_far_as_they_go_and_counted(model, tmp_path):
    limits = {"max_length": 9, "token_budget": 40}
    store = score(model, tmp_path / "cut", config=ScoringConfig(truncation="keep_prefix", **limits))
    whole = {row["example_id"]: row for row in score(model, tmp_path / "all").read().to_pylist()}
    cut = 0
    for row in store.read().to_pylist():
        if row["status"] == "ok":
            expected = whole[row["example_id"]]["token_logprobs"][: row["num_tokens"]]
            assert row["token_logprobs"] == pytest.approx(expected, abs=1e-4)
            cut += row["num_tokens"] < whole[row["example_id"]]["num_tokens"]
    # A row may also lose nothing but its end-of-turn token.
    assert 0 < cut <= store.num_truncated


def test_verify_reads_everything_again(model, complete, tmp_path):
    store = stage.ScoreStore(complete)
    assert store.verify() == len(EXAMPLES)
    shutil.copytree(complete, tmp_path / "s")
    spoil(tmp_path / "s" / "part-00001.parquet", "flipped")
    with pytest.raises(StoreError, match="part-00001"):
        stage.ScoreStore(tmp_path / "s").verify()


@pytest.mark.parametrize("fault", ["sum", "count", "id", "null"])
def test_verify_finds_numbers_that_do_not_fit(complete, tmp_path, fault):
    rows = stage.ScoreStore(complete).read().to_pylist()
    if fault == "sum":
        rows[0]["sequence_logprob"] += 0.01
    elif fault == "count":
        rows[0]["num_tokens"] += 1
    elif fault == "id":
        rows[1]["example_id"] = rows[0]["example_id"]
    else:
        rows[0]["num_bytes"] = None
    store = stage.ScoreStore(tmp_path / "s")
    store.start({})
    store.write_part(0, pa.Table.from_pylist(rows, schema=SCORE_SCHEMA))
    store.finish()
    with pytest.raises(StoreError, match=r"do not fit together|stands twice"):
        store.verify()


def test_parts_without_a_manifest_are_refused(model, complete, tmp_path):
    folder = tmp_path / "s"
    interrupted(complete, folder, [0])
    (folder / MANIFEST).unlink()
    with pytest.raises(StoreError, match="parts but no manifest"):
        score(model, folder)


def test_a_model_that_is_none_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError):
        score(str(tmp_path / "none"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_rows_that_cannot_be_computed_are_stored_as_nonfinite(tiny_model, bpe_tokenizer, tmp_path):
    network = tiny_model("qwen2", tie_word_embeddings=False)
    token = bpe_tokenizer("x")["input_ids"][0]
    with torch.no_grad():
        network.get_input_embeddings().weight[token] = float("nan")
    network.save_pretrained(tmp_path / "m")
    bpe_tokenizer.save_pretrained(tmp_path / "m")
    examples = [*EXAMPLES, Example("spoiled", "x", " box")]
    store = score(str(tmp_path / "m"), tmp_path / "s", examples=examples)
    rows = {row["example_id"]: row for row in store.read().to_pylist()}
    assert len(rows) == len(examples)
    assert rows["spoiled"] == dict.fromkeys(rows["spoiled"]) | {
        "example_id": "spoiled",
        "status": "nonfinite",
    }
    statuses = [row["status"] for row in rows.values()]
    assert {s: statuses.count(s) for s in set(statuses)} == {
        "ok": 14,
        "nonfinite": 1,
        "too_long": 1,
        "empty": 1,
    }


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_default_settings_load_every_family(saved_model, tmp_path, architecture):
    folder = str(saved_model(architecture))
    store = score(folder, tmp_path / "s", examples=EXAMPLES[:3], loading=LoadingConfig())
    assert [row["status"] for row in store.read().to_pylist()] == ["ok"] * 3
