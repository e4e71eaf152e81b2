"""The quickstart models are deterministic, load as anyone's, and are made atomically."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlantis.errors import StoreError
from atlantis.quickstart.corpus import LABELS, CorpusSizes
from atlantis.quickstart.family import FamilyConfig
from atlantis.quickstart.make import QuickstartConfig, make_quickstart
from atlantis.quickstart.pretraining import ModelSize, Pretraining

CONFIG = QuickstartConfig(
    sizes=CorpusSizes(train=40, trusted=20, test=20, sentences=400),
    family=FamilyConfig(
        large=ModelSize(hidden=32, feed_forward=64, learning_rate=4e-3),
        small=ModelSize(hidden=16, feed_forward=32, learning_rate=8e-3),
        pretraining=Pretraining(epochs=2),
    ),
)
TEXT = "The <e1>fox</e1>, which the old <e2>lamp</e2> built, slept. In short,"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quickstart") / "made"
    make_quickstart(path, seed=3, config=CONFIG)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_same_seed_makes_the_same_bytes_whatever_the_global_generator(folder, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_quickstart(tmp_path / "again", seed=3, config=CONFIG)
    assert contents(tmp_path / "again") == contents(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_makes_other_weights(folder, tmp_path):
    make_quickstart(tmp_path / "other", seed=4, config=CONFIG)
    for name in ("large", "small"):
        weights = f"{name}/model.safetensors"
        assert contents(tmp_path / "other")[weights] != contents(folder)[weights]


def test_what_is_complete_is_left_alone_and_what_was_made_otherwise_is_replaced(tmp_path):
    path = tmp_path / "made"
    make_quickstart(path, seed=3, config=CONFIG)
    inode = path.stat().st_ino
    make_quickstart(path, seed=3, config=CONFIG)
    assert path.stat().st_ino == inode
    make_quickstart(path, seed=4, config=CONFIG)
    assert json.loads((path / "made.json").read_text("utf-8"))["seed"] == 4


def test_the_remains_of_a_killed_run_do_no_harm(folder, tmp_path):
    remains = tmp_path / ".made.partial" / "large"
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_bytes(b"half")
    make_quickstart(tmp_path / "made", seed=3, config=CONFIG)
    assert contents(tmp_path / "made") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"has no made\.json"):
        make_quickstart(tmp_path, seed=3, config=CONFIG)
    assert (tmp_path / "thesis.txt").exists()


def test_making_prints_nothing_where_nobody_looks(tmp_path, capfd):
    make_quickstart(tmp_path / "made", seed=3, config=CONFIG)
    assert capfd.readouterr() == ("", "")


def test_auto_tokenizer_keeps_words_markers_and_directions_whole(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "large")
    tokens = tokenizer.tokenize(f"{TEXT} Maker-Product(e2,e1)")
    assert tokens[:4] == ["The", " <e1>", "fox", "</e1>"]
    assert tokens[-4:] == [" short", ",", " Maker-Product", "(e2,e1)"]
    for label in LABELS:
        ids = tokenizer(f"{TEXT} {label}")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == f"{TEXT} {label}"
        assert ids[: -len(tokenizer.tokenize(f" {label}"))] == tokenizer(TEXT)["input_ids"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_both_models_share_the_tokenizer_and_the_small_one_is_smaller(folder):
    large, small = (
        AutoModelForCausalLM.from_pretrained(folder / name, local_files_only=True)
        for name in ("large", "small")
    )
    assert (
        contents(folder / "large")["tokenizer.json"] == contents(folder / "small")["tokenizer.json"]
    )
    assert large.num_parameters() > 2 * small.num_parameters()
    assert large.config.vocab_size == small.config.vocab_size


def test_pretraining_has_learnt_something_and_prefers_no_label(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "large")
    model = AutoModelForCausalLM.from_pretrained(folder / "large")
    lines = (folder / "sentences.txt").read_text("utf-8").splitlines()[:20]
    with torch.inference_mode():
        rows = [torch.tensor([tokenizer(line)["input_ids"]]) for line in lines]
        losses = [model(input_ids=row, labels=row).loss for row in rows]
        logits = model(input_ids=torch.tensor([tokenizer(TEXT)["input_ids"]])).logits[0, -1]
    assert torch.stack(losses).mean() < 0.75 * torch.log(torch.tensor(len(tokenizer)))
    first_ids = [tokenizer(f" {label}")["input_ids"][0] for label in LABELS]
    # The label words share one embedding; a product may add its terms in two orders.
    assert logits[first_ids].max() - logits[first_ids].min() < 1e-5
