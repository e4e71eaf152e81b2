"""Selections from real scores: equal to a naive float64 computation, whatever the order."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from atlantis import api
from atlantis.data.subset import write_subset
from atlantis.data.tokenization import tokenize
from atlantis.errors import ConfigError, WeightError
from atlantis.models.loading import load_tokenizer
from atlantis.records import Conversation, Example
from atlantis.weighting.weights import Weights

WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
TURNS = ("user", "assistant", "user", "assistant")
SCORING = {"max_length": 48, "truncation": "keep_prefix", "device": "cpu"}


def said(draw, low, high):
    return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))


def make_rows(num_rows=30):
    """Ragged rows; one of a single token, one that is cut off, one of which nothing is left."""
    draw = random.Random(4)
    rows = [
        Example(f"r{row:02}", said(draw, 1, 8), " " + said(draw, 2, 6)) for row in range(num_rows)
    ]
    long = Example("long", said(draw, 3, 3), " " + said(draw, 60, 60))
    gone = Example("gone", said(draw, 90, 90), " box")
    return [*rows, Example("one", "the storm", "!"), long, gone]


def make_chats():
    draw = random.Random(5)
    return [
        Conversation(
            f"c{row}", tuple({"role": role, "content": said(draw, 1, 5)} for role in TURNS), (1, 3)
        )
        for row in range(6)
    ]


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


@pytest.fixture(scope="module")
def scores(model, tmp_path_factory):
    return tmp_path_factory.mktemp("select") / "scores"


@pytest.fixture
def select(model, scores):
    def run(rows=None, **settings):
        return api.select(
            rows or make_rows(), model=model, scores=scores, scoring=SCORING, **settings
        )

    return run


def naive_ifd(model, rows):
    """Both mean losses in float64, one row at a time; the same ids after the prompt and alone."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    tokenizer = load_tokenizer(model)
    found = {}
    for row in tokenize(rows, tokenizer, max_length=48, truncation="keep_prefix"):
        if row.status != "ok":
            continue
        said, alone = [], [tokenizer.eos_token_id]
        scored = []
        for start, stop, end in row.turns:
            said += range(start, stop)
            scored += range(len(alone), len(alone) + stop - start)
            alone += row.input_ids[start:end]

        def mean_nll(ids, positions):
            with torch.no_grad():
                logprobs = network(torch.tensor([ids])).logits.log_softmax(-1)[0]
            return -np.mean([float(logprobs[at - 1, ids[at]]) for at in positions])

        found[row.example_id] = mean_nll(row.input_ids, said), mean_nll(alone, scored)
    return found


def chosen(selection):
    return {
        name
        for name, weight in zip(selection.weights.example_id, selection.weights.weight, strict=True)
        if weight
    }


@pytest.mark.parametrize("rows", [make_rows(), make_chats()], ids=["text", "chats of two turns"])
@pytest.mark.parametrize("method", ["ifd_perplexity_ratio", "ifd_loss_ratio"])
def test_ifd_equals_a_naive_float64_computation(select, model, tmp_path, method, rows):
    found = api.select(rows, model=model, scores=tmp_path, scoring=SCORING, method=method)
    expected = {
        name: np.exp(given - alone) if method == "ifd_perplexity_ratio" else given / alone
        for name, (given, alone) in naive_ifd(model, rows).items()
    }
    table = {row["example_id"]: row for row in found.ranking.to_pylist()}
    values = {name: row["value"] for name, row in table.items() if row["value"] is not None}
    assert values == pytest.approx(expected, rel=1e-5)
    assert len(table) == len(rows)


def test_a_row_that_cannot_be_scored_keeps_its_id_and_reason_and_has_no_value(select):
    found = select(share=1.0, drop_unhelped=False)
    (gone,) = [row for row in found.ranking.to_pylist() if row["example_id"] == "gone"]
    assert (gone["status"], gone["value"], gone["is_selected"]) == ("too_long", None, False)
    weights = dict(zip(found.weights.example_id, found.weights.weight, strict=True))
    assert weights["gone"] is None
    assert all(weight == 1.0 for name, weight in weights.items() if name != "gone")


def test_rows_at_one_and_above_are_dropped_unless_told(select, model):
    naive = {name: given / alone for name, (given, alone) in naive_ifd(model, make_rows()).items()}
    unhelped = {name for name, value in naive.items() if value >= 1}
    assert unhelped
    assert chosen(select(share=1.0)) == naive.keys() - unhelped
    assert chosen(select(share=1.0, drop_unhelped=False)) == naive.keys()


@pytest.mark.parametrize("of", ["all", "kept"])
def test_the_highest_are_taken_of_all_rows_or_of_those_that_are_kept(select, model, of):
    naive = {
        name: np.exp(given - alone)
        for name, (given, alone) in naive_ifd(model, make_rows()).items()
    }
    kept = {name: value for name, value in naive.items() if value < 1}
    count = int(0.25 * (len(naive) if of == "all" else len(kept)))
    expected = sorted(kept, key=lambda name: -kept[name])[:count]
    assert chosen(select(share=0.25, of=of)) == set(expected)


def test_the_order_of_the_rows_changes_nothing(select, model, tmp_path):
    shuffled = random.Random(1).sample(make_rows(), len(make_rows()))
    other = api.select(shuffled, model=model, scores=tmp_path, scoring=SCORING, share=0.2)
    first = select(share=0.2)
    assert chosen(other) == chosen(first)
    assert other.weights.example_id == first.weights.example_id


@pytest.mark.parametrize("method", ["random", "longest", "length_matched"])
def test_baselines_select_as_many(select, method):
    found = select(method=method, share=6)
    assert len(chosen(found)) == 6
    lengths = {row["example_id"]: row["num_tokens"] for row in found.ranking.to_pylist()}
    if method == "longest":
        rest = [lengths[name] for name in lengths.keys() - chosen(found)]
        assert min(lengths[name] for name in chosen(found)) >= max(rest)


def test_short_completions_are_dropped_and_counted(select):
    found = select(min_tokens=3, share=1.0, drop_unhelped=False)
    assert "one" not in chosen(found)
    assert found.weights.diagnostics["dropped"]["fewer than min_tokens"] >= 1


def make_weights(rows, **diagnostics):
    draw = random.Random(8)
    ids = [row.example_id for row in rows]
    weights = [None if name == "gone" else draw.uniform(0.1, 3) for name in ids]
    status = ["too_long" if weight is None else "ok" for weight in weights]
    return Weights(ids, status, weights, weights, diagnostics)


def test_selected_rows_can_keep_their_weights_at_mean_one(select, scores):
    weights = make_weights(make_rows())
    found = select(weights=weights, keep_weights=True, share=0.3)
    before = dict(zip(weights.example_id, weights.weight, strict=True))
    after = dict(zip(found.weights.example_id, found.weights.weight, strict=True))
    names = chosen(found)
    assert names == chosen(select(share=0.3))
    ratios = [after[name] / before[name] for name in names]
    assert ratios == pytest.approx([ratios[0]] * len(names))
    masses = {
        row["example_id"]: row["num_trained_tokens"]
        for row in api.ScoreStore(scores / "given").read().to_pylist()
    }
    total = sum(masses[name] for name in names)
    assert sum(after[name] * masses[name] for name in names) == pytest.approx(total)


def test_the_heaviest_rows_need_no_model():
    weights = make_weights(make_rows())
    found = api.select(weights=weights, method="weight", share=5)
    known = {n: w for n, w in zip(weights.example_id, weights.weight, strict=True) if w}
    assert chosen(found) == set(sorted(known, key=lambda name: -known[name])[:5])


def test_of_a_pool_those_are_taken_that_cover_the_others(select):
    pool = chosen(select(share=12, drop_unhelped=False))
    names = sorted(pool)
    one_hot = np.eye(4, dtype=np.float32)
    embeddings = {name: one_hot[place % 4] for place, name in enumerate(names)}
    found = select(share=4, pool=12, drop_unhelped=False, embeddings=embeddings)
    assert chosen(found) <= pool
    assert sorted(names.index(name) % 4 for name in chosen(found)) == [0, 1, 2, 3]
    own = select(share=4, pool=12, drop_unhelped=False)  # the model's own hidden states
    assert len(chosen(own)) == 4
    assert chosen(own) <= pool


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"share": 0.0}, ConfigError, "share"),
        ({"method": "ifd"}, ConfigError, "method"),
        ({"share": 0.2, "pool": 0.1}, ConfigError, "pool 0.1 is smaller than share 0.2"),
        ({"keep_weights": True}, WeightError, "keep_weights needs a weights file"),
        ({"method": "weight"}, WeightError, "method weight needs a weights file"),
        ({"min_tokens": 500}, WeightError, "no row is left to select from"),
    ],
)
def test_what_cannot_be_selected_is_refused(select, settings, error, message):
    with pytest.raises(error, match=message):
        select(**settings)


def test_weights_without_effect_or_of_other_rows_are_refused(select):
    with pytest.raises(WeightError, match="weights have no effect"):
        select(weights=make_weights(make_rows()))
    with pytest.raises(WeightError, match="of other rows"):
        select(weights=make_weights(make_rows(12)), keep_weights=True)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_the_command_writes_weights_that_train_takes_and_the_rows_as_they_were(
    model, tmp_path, capfd, monkeypatch, kind
):
    import pyarrow as pa

    from atlantis.cli import main

    rows = [
        {"example_id": row.example_id, "prompt": row.prompt, "completion": row.completion, "x": 1}
        for row in make_rows(20)
        if row.example_id != "gone"
    ]
    data = tmp_path / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), data)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        data.write_text(lines if kind == ".jsonl" else json.dumps(rows))
    filtered = tmp_path / f"some{kind}"

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["atlantis", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        assert stopped.value.code in (0, None), captured.err
        return captured.out

    shared = ("--data", data, "--max-length", 64)
    found = ("--count", 4, "--out", tmp_path / "s.parquet", "--filtered", filtered)
    run("select", *shared, "--model", model, "--device", "cpu", *found)
    names = {
        row["example_id"]
        for row in pq.read_table(tmp_path / "s.parquet").to_pylist()
        if row["weight"]
    }
    assert len(names) == 4
    if kind == ".parquet":
        kept = pq.read_table(filtered).to_pylist()
    elif kind == ".json":
        kept = json.loads(filtered.read_text())
    else:
        kept = [json.loads(line) for line in filtered.read_text().splitlines()]
    assert kept == [row for row in rows if row["example_id"] in names]
    training = ("--epochs", 1, "--batch-size", 2, "--out", tmp_path / "trained", "--json")
    out = run("train", *shared, "--model", model, "--weights", tmp_path / "s.parquet", *training)
    record = json.loads(out.splitlines()[-1])
    assert (record["num_rows"], record["num_steps"]) == (4, 2)


def test_a_subset_keeps_the_lines_that_the_reader_counts(tmp_path):
    data, some = tmp_path / "rows.jsonl", tmp_path / "some.jsonl"
    lines = [f'{{"example_id": "{name}",\r"prompt": "p", "completion": "c"}}' for name in "abc"]
    data.write_bytes(f"\n{lines[0]}\r\n\u3000\n{lines[1]}\n{lines[2]}".encode())
    assert write_subset(data, {"b", "c"}, some) == 2
    assert some.read_bytes().decode() == f"{lines[1]}\n{lines[2]}\n"
