"""The CoNLL04 reader: files written by hand, bad files, real counts."""

import json
import re
from collections import Counter

import pytest

from atlantis.data.formats import NO_RELATION, read_conll04
from atlantis.errors import DataError


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


SENTENCE = {
    "tokens": ["Ann", "Lee", "of", "Acme", "in", "Rome"],
    "tags": ["B-Peop", "L-Peop", "O", "U-Org", "O", "U-Loc"],
    "relations": [
        {"head": 0, "tail": 1, "type": "Work_For"},
        {"head": 1, "tail": 2, "type": "OrgBased_In"},
    ],
    "orig_id": 7,
}


def test_conll04_gold_pairs_are_the_relations(tmp_path):
    path = write_json(tmp_path / "c.json", [SENTENCE])
    (first, second), dropped = read_conll04(path, mode="gold_pairs")
    assert dropped == ()
    assert first.text == "<e1>Ann Lee</e1> of <e2>Acme</e2> in Rome"
    assert (first.head, first.tail) == ("Ann Lee", "Acme")
    assert (first.head_type, first.tail_type) == ("Peop", "Org")
    assert (first.label, first.gold_label, first.example_id) == ("Work_For",) * 2 + (
        "conll04-7-0-1",
    )
    assert second.text == "Ann Lee of <e1>Acme</e1> in <e2>Rome</e2>"


def test_conll04_with_none_has_every_ordered_pair(tmp_path):
    path = write_json(tmp_path / "c.json", [SENTENCE])
    rows = read_conll04(path, mode="with_none").rows
    labels = {row.example_id.removeprefix("conll04-7-"): row.label for row in rows}
    assert labels == {
        "0-1": "Work_For", "0-2": NO_RELATION, "1-0": NO_RELATION,
        "1-2": "OrgBased_In", "2-0": NO_RELATION, "2-1": NO_RELATION,
    }  # fmt: skip


def test_conll04_sentences_that_give_no_pair_are_counted(tmp_path):
    path = write_json(tmp_path / "c.json", [SENTENCE, SENTENCE | {"relations": [], "orig_id": 8}])
    assert read_conll04(path, mode="gold_pairs").dropped == (
        "1 sentences of c.json give no pair in mode gold_pairs",
    )


def test_conll04_sentences_without_a_number_get_an_id_from_their_content(tmp_path):
    bare = {key: value for key, value in SENTENCE.items() if key != "orig_id"}
    ids = [
        read_conll04(write_json(tmp_path / name, rows), mode="gold_pairs").rows[-1].example_id
        for name, rows in (("a.json", [bare]), ("b.json", [SENTENCE, bare]))
    ]
    assert ids[0] == ids[1]
    assert re.fullmatch(r"conll04-[0-9a-f]{16}-1-2", ids[0])


def relation(**changes):
    return {"relations": [{"head": 0, "tail": 1, "type": "Kill"} | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (relation(tail=3), r"row 0: relation 0->3 does not join two of 3 entities; count"),
        (relation(tail=0), r"row 0: relation 0->0 does not join"),
        (relation(tail=-1), r"row 0: relation 0->-1 does not join"),
        (relation(tail="1"), r"row 0: tail: expected an integer, found '1'"),
        (relation(type=" "), r"row 0: type: is empty"),
        ({"relations": [{"head": 0, "tail": 1}]}, r"'type' is missing \(present: head, tail\)"),
        ({"relations": SENTENCE["relations"] * 2}, r"row 0: pair 0->1 has two relations"),
        ({"tags": ["O"]}, r"row 0: 6 tokens but 1 tags"),
        ({"tags": ["I-Peop", *SENTENCE["tags"][1:]]}, r"tag 'I-Peop' at token 0 is no BILOU"),
        ({"tags": ["B-Peop", "L-Org", *SENTENCE["tags"][2:]]}, r"tag 'L-Org' at token 1"),
        ({"tags": ["B-Peop", "O", *SENTENCE["tags"][2:]]}, r"tag 'O' at token 1"),
        ({"tags": [*SENTENCE["tags"][:5], "B-Loc"]}, r"the last entity has no L- tag"),
        ({"tokens": ["<e1>", *SENTENCE["tokens"][1:]]}, r"once each and apart"),
    ],
)
def test_bad_conll04_rows_are_refused_in_one_line(tmp_path, changes, message):
    path = write_json(tmp_path / "c.json", [SENTENCE | changes])
    with pytest.raises(DataError, match=message) as error:
        read_conll04(path, mode="gold_pairs")
    assert "\n" not in str(error.value)


def test_conll04_missing_columns_are_refused_with_those_present(tmp_path):
    path = write_json(tmp_path / "c.json", [{"tokens": [], "orig_id": 1}])
    with pytest.raises(DataError, match=r"'tags' is missing \(present: tokens, orig_id\); add it"):
        read_conll04(path, mode="gold_pairs")


@pytest.mark.parametrize(
    ("name", "num_relations", "num_none"),
    [("train", 1283, 10715), ("dev", 343, 2917), ("test", 422, 3400)],
)
def test_conll04_counts(shared_data, name, num_relations, num_none):
    path = shared_data / "conll04" / f"conll04_{name}.json"
    assert len(read_conll04(path, mode="gold_pairs").rows) == num_relations
    labels = Counter(row.label for row in read_conll04(path, mode="with_none").rows)
    assert labels[NO_RELATION] == num_none
    assert labels.total() == num_none + num_relations
