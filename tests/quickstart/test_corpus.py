"""The quickstart corpus is deterministic, balanced, well-formed, and not solved by single words."""

import re
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from atlantis.quickstart import grammar
from atlantis.quickstart.corpus import LABELS, OTHER, CorpusSizes, write_corpus

SPLITS = ("train", "trusted", "test")
ROW = re.compile(r'(\d+)\t"(.+)"\n(\S+)\nComment:\n')
SIZES = CorpusSizes(train=1000, trusted=200, test=400, sentences=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path, seed=0, sizes=SIZES)
    return path


def read(folder: Path, split: str) -> list[tuple[int, str, str]]:
    blocks = (folder / f"{split}.txt").read_text("utf-8").removesuffix("\n\n").split("\n\n")
    matches = [ROW.fullmatch(f"{block}\n") for block in blocks]
    assert all(matches)
    return [(int(m[1]), m[2], m[3]) for m in matches if m]


def unmarked(text: str) -> str:
    return re.sub(r"</?e[12]>", "", text)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(folder, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, seed=seed, sizes=SIZES)
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()


def test_every_split_has_all_19_labels_evenly_and_other_twice_as_often(folder):
    assert len(LABELS) == 19
    for split, size in (("train", 1000), ("trusted", 200), ("test", 400)):
        counts = Counter(label for _, _, label in read(folder, split))
        assert counts == {label: size // 20 * (2 if label == OTHER else 1) for label in LABELS}


def test_ids_are_unique_over_all_files(folder):
    ids = [row_id for split in SPLITS for row_id, _, _ in read(folder, split)]
    assert ids == list(range(1, 1601))


def test_markers_stand_once_each_around_one_noun_and_in_order(folder):
    for split in SPLITS:
        for _, text, _ in read(folder, split):
            marked = re.findall(r"<(/?e[12])>", text)
            assert marked == ["e1", "/e1", "e2", "/e2"]
            pair = re.findall(r"<e[12]>(.+?)</e[12]>", text)
            assert len(set(pair)) == 2
            assert set(pair) <= set(grammar.NOUNS)


def test_no_sentence_stands_twice_even_with_other_markers_or_unlabelled(folder):
    texts = [text for split in SPLITS for _, text, _ in read(folder, split)]
    lines = (folder / "sentences.txt").read_text("utf-8").splitlines()
    assert len(lines) == SIZES.sentences
    unlabelled = [f"{line.split('.')[0]}." for line in lines]
    assert len(set(texts + unlabelled)) == len(texts) + len(lines)
    splits = [{unmarked(text) for _, text, _ in read(folder, split)} for split in SPLITS]
    assert sum(map(len, splits)) == len(set().union(*splits))


def test_the_unlabelled_sentences_name_no_label(folder):
    text = (folder / "sentences.txt").read_text("utf-8")
    assert not any(relation.name in text for relation in grammar.RELATIONS)
    assert OTHER not in text
    assert "(e" not in text


def test_the_order_of_the_entities_says_nothing_about_the_direction(folder):
    for split in SPLITS:
        counts = Counter(label[-7:] for _, _, label in read(folder, split) if label != OTHER)
        assert counts["(e1,e2)"] == counts["(e2,e1)"]


def test_every_phrasing_of_both_orders_is_there_for_every_relation():
    for phrasings in (grammar.VERB_PHRASINGS, *(r.phrasings for r in grammar.RELATIONS)):
        forward = [text.index("{a}") < text.index("{b}") for text in phrasings]
        assert sum(forward) == len(forward) / 2
    verbs = [verb for relation in grammar.RELATIONS for verb in relation.verbs]
    assert len(set(verbs)) == len(verbs)


@pytest.mark.parametrize("keep_markers", [False, True])
def test_a_bag_of_words_does_not_find_the_label(folder, keep_markers):
    def words(split):
        return [text if keep_markers else unmarked(text) for _, text, _ in read(folder, split)]

    def labels(split):
        return [label for _, _, label in read(folder, split)]

    counter = CountVectorizer(token_pattern=r"</?e[12]>|\w+")
    classifier = LogisticRegression(C=3.0, max_iter=1000)
    classifier.fit(counter.fit_transform(words("train")), labels("train"))
    predicted = classifier.predict(counter.transform(words("test")))
    related = [label for label in LABELS if label != OTHER]
    assert f1_score(labels("test"), predicted, labels=related, average="macro") < 0.75
