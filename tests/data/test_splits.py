"""Splits from small files written here and from the real ones: every step, note and refusal."""

import json
from collections import Counter

import pytest

from atlantis.data.splits import DataConfig, load_splits
from atlantis.errors import DataError

PROMPT = "{text}\n{head} - {tail}:"
LABELS = ("Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Message-Topic(e1,e2)", "Other")


def write_semeval(path, numbers, *, labels=LABELS):
    blocks = [
        f'{n}\t"The <e1>a{n}</e1>, of {{{n}}} <e2>b{n}</e2>."\n{labels[n % len(labels)]}\n'
        for n in numbers
    ]
    path.write_text("\n".join(blocks))


@pytest.fixture
def root(tmp_path):
    write_semeval(tmp_path / "train.txt", range(1, 101))
    write_semeval(tmp_path / "test.txt", range(91, 131))
    rows = [{"prompt": f"Q{n}", "completion": f" {'yn'[n % 2]}"} for n in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def semeval(name="train", **options):
    return {"format": "semeval", "path": f"{name}.txt", **options}


def config(root, **changes):
    given = {"root": root, "train": semeval(), "test": semeval("test"), "prompt": PROMPT}
    return DataConfig.model_validate(given | changes)


def load(root, **changes):
    return load_splits(config(root, **changes))


def ids(rows):
    return [row.example_id for row in rows]


def test_rows_become_prompts_and_completions(root):
    splits = load(root, negative_label="Other")
    row = splits.train[0]
    assert row.prompt == "The <e1>a1</e1>, of {1} <e2>b1</e2>.\na1 - b1:"
    assert (row.completion, row.label) == (" Cause-Effect(e2,e1)", "Cause-Effect(e2,e1)")
    assert (row.gold_label, row.text) == (row.label, "The <e1>a1</e1>, of {1} <e2>b1</e2>.")
    assert (len(splits.train), len(splits.trusted), len(splits.heldout), len(splits.test)) == (
        100, 0, 0, 40,
    )  # fmt: skip
    assert (splits.labels.names, splits.labels.negative) == (LABELS, "Other")


def test_shared_sentences_are_noted_and_excluding_removes_them(root):
    assert any("train: 10 sentences also stand in test" in note for note in load(root).notes)
    splits = load(root, train=semeval(excluding=["test"]))
    assert ids(splits.train) == [str(n) for n in range(1, 91)]
    assert splits.notes == ("train: 10 rows excluded, their sentences stand in test",)


def test_excluding_ignores_markers_case_and_punctuation(root):
    text = (root / "test.txt").read_text()
    (root / "test.txt").write_text(text.replace("The <e1>", "<e1>THE ").replace(", of", " -- OF"))
    assert len(load(root, train=semeval(excluding=["test"])).train) == 90


def test_prompts_without_letters_and_digits_are_not_taken_for_the_same(root):
    for name, prompt in (("a", "?"), ("b", "!")):
        (root / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt, "completion": "yes"}))
    train, test = ({"format": "prompt_completion", "path": f"{name}.jsonl"} for name in "ab")
    given = {"root": root, "train": train | {"excluding": ["test"]}, "test": test}
    assert len(load_splits(DataConfig.model_validate(given)).train) == 1


def test_trusted_and_train_from_one_file_share_no_sentence_and_no_id(root):
    splits = load(
        root,
        train=semeval(excluding=["trusted", "test"]),
        trusted=semeval(sample=20, excluding=["test"]),
    )
    trusted = [*splits.trusted, *splits.heldout]
    assert (len(splits.trusted), len(splits.heldout), len(splits.train)) == (15, 5, 70)
    assert all(example_id.startswith("trusted-") for example_id in ids(trusted))
    assert not {row.text for row in trusted} & {row.text for row in splits.train}
    assert all(row.entity_types is None for row in trusted)
    assert len({*ids(trusted), *ids(splits.train)}) == 90
    assert splits.notes == (
        "trusted: 10 rows excluded, their sentences stand in test",
        "trusted: 20 of 90 rows sampled (seed 0)",
        "train: 20 rows excluded, their sentences stand in trusted",
        "train: 10 rows excluded, their sentences stand in test",
        "trusted: 5 of 20 rows are held out",
    )


def test_samples_and_holdout_follow_the_seed_and_keep_the_order_of_the_file(root):
    def drawn(seed):
        splits = load(root, trusted=semeval(sample=30, seed=seed))
        return [int(i.removeprefix("trusted-")) for i in ids(splits.trusted)], ids(splits.heldout)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1)[0] == sorted(drawn(1)[0])


def test_direction_can_be_dropped_and_labels_left_out(root):
    options = {"direction": "drop", "drop_labels": ["Other"]}
    splits = load(root, train=semeval(**options), test=semeval("test", **options))
    assert splits.labels.names == ("Cause-Effect", "Message-Topic")
    assert {row.gold_label for row in splits.train} == set(splits.labels.names)
    assert "train: 25 rows labelled Other dropped" in splits.notes


def test_noise_changes_label_and_completion_but_not_the_true_label(root):
    splits = load(root, train=semeval(noise={"kind": "uniform", "rate": 0.2}))
    clean = {row.example_id: row.label for row in load(root).train}
    assert sum(row.label != row.gold_label for row in splits.train) == 20
    assert all(row.gold_label == clean[row.example_id] for row in splits.train)
    assert all(row.completion == f" {row.label}" for row in splits.train)
    assert "train: 20 of 100 labels are wrong after uniform noise" in splits.notes


def test_noise_follows_the_seed_of_its_split(root):
    def labels(seed):
        noise = {"kind": "uniform", "rate": 0.2}
        return [row.label for row in load(root, train=semeval(noise=noise, seed=seed)).train]

    assert labels(1) == labels(1) != labels(2)


def test_noise_does_not_shift_the_sample(root):
    plain = load(root, train=semeval(sample=50))
    noisy = load(root, train=semeval(sample=50, noise={"kind": "confusable", "rate": 0.2}))
    assert ids(plain.train) == ids(noisy.train)


def test_labels_that_only_test_has_are_noted(root):
    splits = load(root, train=semeval(drop_labels=["Other"]))
    assert "Other" in splits.labels.names
    assert "test: labels that never occur in train: Other" in splits.notes


def test_prompt_completion_splits_are_used_as_they_stand(root):
    part = {"format": "prompt_completion", "path": "p.jsonl"}
    splits = load_splits(
        DataConfig.model_validate({"root": root, "train": part | {"sample": 3}, "test": part})
    )
    assert [len(splits.train), len(splits.test)] == [3, 8]
    assert splits.test[0].prompt == "Q0"
    assert splits.labels.names == ("n", "y")
    assert (
        "train: 3 sentences also stand in test; `excluding: [test]` leaves them out" in splits.notes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": semeval(sample=101)}, "train: cannot sample 101 of 100 rows; lower `sample`"),
        ({"train": semeval(drop_labels=["other"])}, "drop_labels: no row is labelled 'other'"),
        ({"train": semeval("test", excluding=["test"])}, "train: no row is left"),
        ({"train": semeval(direction="drop")}, "'Cause-Effect' occurs with direction"),
        ({"negative_label": "None"}, "negative_label 'None' never occurs; labels are Cause"),
        ({"train": semeval("gone")}, r"gone\.txt: no such file"),
        ({"trusted": semeval(sample=2)}, "trusted: holdout_fraction 0.25 of 2 rows holds out 0"),
    ],
)
def test_steps_that_cannot_be_done_are_refused(root, changes, message):
    with pytest.raises(DataError, match=message):
        load(root, **changes)


def test_dropping_directions_where_there_are_none_is_refused(root):
    write_semeval(root / "train.txt", range(5), labels=("A", "B"))
    with pytest.raises(DataError, match="train: direction: drop has no effect"):
        load(root, train=semeval(direction="drop"))


def test_a_train_id_that_looks_trusted_is_refused(root):
    for name, example_id in (("a", "trusted-x"), ("b", "x")):
        row = {"prompt": f"Q{name}", "completion": "yes", "example_id": example_id}
        (root / f"{name}.jsonl").write_text(json.dumps(row))
    parts = {
        split: {"format": "prompt_completion", "path": f"{name}.jsonl"}
        for split, name in (("train", "a"), ("trusted", "b"), ("test", "b"))
    }
    with pytest.raises(DataError, match="id 'trusted-x' stands in train and, prefixed, in trusted"):
        load_splits(DataConfig.model_validate({"root": root, "holdout_fraction": 0, **parts}))


# --- Real data --------------------------------------------------------------------------------


def test_wrench_train_with_official_sentences_left_out(shared_data):
    wrench = {"format": "wrench", "labels": "majority"}
    official = {"format": "semeval", "path": "semeval2010_task8/TEST_FILE_FULL.TXT"}
    splits = load_splits(
        DataConfig.model_validate(
            {
                "root": shared_data,
                "prompt": PROMPT,
                "train": wrench
                | {
                    "path": "wrench_semeval/train.json",
                    "excluding": ["test"],
                    "noise": {"kind": "mix_gold", "target_rate": 0.15},
                },
                "trusted": {"format": "wrench", "path": "wrench_semeval/valid.json"},
                "test": official | {"direction": "drop", "drop_labels": ["Other"]},
            }
        )
    )
    assert len(splits.labels.names) == 9
    assert len(splits.test) == 2717 - 454
    wrong = sum(row.label != row.gold_label for row in splits.train)
    assert wrong == round(0.15 * len(splits.train))


def test_wrench_sentences_stand_in_the_official_files(shared_data):
    # The number that shared/data/README.md gives for train; found there by the same normal form.
    train = {"format": "wrench", "path": "wrench_semeval/train.json", "excluding": ["test"]}
    official = {"format": "semeval", "path": "semeval2010_task8/TRAIN_FILE.TXT",
                "direction": "drop"}  # fmt: skip
    given = {"root": shared_data, "prompt": PROMPT, "train": train, "test": official}
    splits = load_splits(DataConfig.model_validate(given))
    assert 1749 - len(splits.train) == 1697


def test_conll04_splits_keep_the_negative_and_the_entity_types(shared_data):
    part = {"format": "conll04", "mode": "with_none"}
    train, test = (part | {"path": f"conll04/conll04_{name}.json"} for name in ("train", "test"))
    given = {"root": shared_data, "prompt": PROMPT, "negative_label": "NO_RELATION"}
    splits = load_splits(DataConfig.model_validate(given | {"train": train, "test": test}))
    assert len(splits.test) == 3400 + 422
    assert (len(splits.labels.names), splits.labels.negative) == (6, "NO_RELATION")
    types = {row.entity_types for row in splits.test if row.label == "Work_For"}
    assert types == {"Peop-Org"}


def test_semeval_sample_keeps_nineteen_labels(shared_data):
    folder = {"format": "semeval", "path": "semeval2010_task8/TRAIN_FILE.TXT"}
    test = {"format": "semeval", "path": "semeval2010_task8/TEST_FILE_FULL.TXT"}
    noise = {"kind": "confusable", "rate": 0.2}
    splits = load_splits(
        DataConfig.model_validate(
            {
                "root": shared_data, "prompt": PROMPT, "negative_label": "Other",
                "train": folder | {"excluding": ["trusted", "test"], "noise": noise},
                "trusted": folder | {"sample": 500, "excluding": ["test"]}, "test": test,
            }
        )
    )  # fmt: skip
    assert len(splits.labels.names) == 19
    assert len(splits.trusted) == 375
    assert len(splits.heldout) == 125
    wrong = Counter(row.label != row.gold_label for row in splits.train)
    assert wrong[True] == round(0.2 * len(splits.train))
