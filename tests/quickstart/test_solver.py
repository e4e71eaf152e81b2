"""The word problems' files and their solver are deterministic and made whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlantis.errors import StoreError
from atlantis.quickstart import make
from atlantis.quickstart.make import WordProblemsConfig, make_word_problems
from atlantis.quickstart.pretraining import ModelSize, Pretraining
from atlantis.quickstart.solver import Reading, SolverConfig
from atlantis.quickstart.word_problems import GUIDED_PROMPT, PROMPT

CONFIG = WordProblemsConfig(
    train=40,
    test=20,
    solver=SolverConfig(
        size=ModelSize(hidden=32, feed_forward=64, learning_rate=8e-3),
        reading=Reading(plain=300, guided=100, formal=100, sums=100, expert_sums=100),
        pretraining=Pretraining(epochs=4, label_smoothing=0.005),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "made"
    make_word_problems(path, seed=3, config=CONFIG)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_same_seed_makes_the_same_bytes_whatever_the_global_generator(folder, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_word_problems(tmp_path / "again", seed=3, config=CONFIG)
    assert contents(tmp_path / "again") == contents(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_makes_other_problems_and_other_weights(folder, tmp_path):
    make_word_problems(tmp_path / "other", seed=4, config=CONFIG)
    for name in ("train.jsonl", "test.jsonl", "model/model.safetensors"):
        assert contents(tmp_path / "other")[name] != contents(folder)[name]


def test_the_files_hold_the_fields_that_the_recipe_reads(folder):
    train, test = rows(folder / "train.jsonl"), rows(folder / "test.jsonl")
    assert (len(train), len(test)) == (40, 20)
    assert set(train[0]) == {"example_id", "prompt", "completion", "answer", "kind"}
    assert set(test[0]) == {"example_id", "problem", "answer", "kind"}
    ids = [row["example_id"] for row in (*train, *test)]
    assert len(set(ids)) == len(ids)
    for row in train:
        assert row["prompt"].endswith("\nSolution:")
        assert row["completion"].endswith(rf"\boxed{{{row['answer']}}}.")


def test_no_problem_of_the_test_set_is_trained_on(folder):
    trained = {row["prompt"] for row in rows(folder / "train.jsonl")}
    held_out = {PROMPT.format(problem=row["problem"]) for row in rows(folder / "test.jsonl")}
    assert not trained & held_out
    assert len(trained) + len(held_out) == 60


def test_the_model_has_read_no_problem_of_either_file(tmp_path, monkeypatch):
    def read(folder, tokenizer, passages, **_):
        folder.mkdir()
        lines = [json.dumps(passage.context) for passage in passages]
        (folder / "contexts.txt").write_text("\n".join(lines))

    monkeypatch.setattr("atlantis.quickstart.solver.write_pretrained", read)
    make_word_problems(tmp_path / "made", seed=3, config=CONFIG)
    lines = (tmp_path / "made/model/contexts.txt").read_text().splitlines()
    contexts = [json.loads(line) for line in lines]
    plain = {context[context.index("Problem:") :] for context in contexts if context}
    assert len(plain) == 500
    asked = {row["prompt"] for row in rows(tmp_path / "made/train.jsonl")}
    asked |= {PROMPT.format(problem=row["problem"]) for row in rows(tmp_path / "made/test.jsonl")}
    assert not plain & asked


def test_a_failure_on_the_way_leaves_nothing_under_the_final_name(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(make, "write_solver", fail)
        with pytest.raises(OSError, match="no space"):
            make_word_problems(tmp_path / "made", seed=3, config=CONFIG)
    assert not (tmp_path / "made").exists()
    make_word_problems(tmp_path / "made", seed=3, config=CONFIG)
    assert contents(tmp_path / "made") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_is_complete_is_left_alone_and_what_we_did_not_make_is_refused(folder, tmp_path):
    inode = folder.stat().st_ino
    make_word_problems(folder, seed=3, config=CONFIG)
    assert folder.stat().st_ino == inode
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"has no made\.json"):
        make_word_problems(tmp_path, seed=3, config=CONFIG)


def test_the_model_knows_every_word_of_the_files_even_with_the_notes(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for row in rows(folder / "train.jsonl"):
        guided = GUIDED_PROMPT.format(solution=row["completion"].strip(), prompt=row["prompt"])
        assert tokenizer.unk_token_id not in tokenizer(guided + row["completion"])["input_ids"]
    for row in rows(folder / "test.jsonl"):
        ids = tokenizer(PROMPT.format(problem=row["problem"]))["input_ids"]
        assert tokenizer.unk_token_id not in ids


def test_greedy_completions_are_in_the_models_own_wording_and_stop_by_themselves(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    stopped = 0
    for row in rows(folder / "train.jsonl")[:10]:
        inputs = tokenizer(row["prompt"], return_tensors="pt")
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=64,
        )[0, inputs["input_ids"].shape[1] :]
        stopped += ids[-1].item() == tokenizer.eos_token_id
        text = tokenizer.decode(ids)
        assert text.split()[0] in ("Count", "Work", "Go"), text
    assert stopped >= 8
