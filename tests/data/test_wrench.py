"""The WRENCH reader: files written by hand, bad files, real counts."""

import json
import re
from collections import Counter

import pytest

from atlantis.data.formats import read_wrench
from atlantis.errors import DataError


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def wrench_row(label, votes, **data):
    text = "Fog caused long delays ."
    given = {
        "text": text,
        "entity1": "delays",
        "entity2": "Fog",
        "span1": [16, 22],
        "span2": [0, 3],
    }
    return {"label": label, "data": given | data, "weak_labels": votes}


def write_wrench(folder, rows):
    write_json(folder / "label.json", {"0": "Cause-Effect", "1": "Other"})
    return write_json(folder / "w.json", rows)


ROWS = {
    "5": wrench_row(0, [-1, 0, 0, 1]),
    "6": wrench_row(1, [-1, -1, -1, -1]),
    "9": wrench_row(0, [1, -1, -1, -1]),
}


def test_wrench_markers_stand_at_the_spans_in_either_order(tmp_path):
    row = read_wrench(write_wrench(tmp_path, ROWS)).rows[0]
    assert row.text == "<e2>Fog</e2> caused long <e1>delays</e1> ."
    assert (row.example_id, row.head, row.tail) == ("wrench-5", "delays", "Fog")


@pytest.mark.parametrize(
    ("labels", "found", "dropped"),
    [
        ("gold", {"5": "Cause-Effect", "6": "Other", "9": "Cause-Effect"}, None),
        ("majority", {"5": "Cause-Effect", "9": "Other"}, "1 rows .* every labelling function"),
        ("function:0", {"9": "Other"}, "2 rows .* labelling function:0 abstains"),
        ("function:3", {"5": "Other"}, "2 rows .* labelling function:3 abstains"),
    ],
)
def test_wrench_labels_come_from_the_source_asked_for(tmp_path, labels, found, dropped):
    result = read_wrench(write_wrench(tmp_path, ROWS), labels=labels)
    assert {row.example_id.removeprefix("wrench-"): row.label for row in result.rows} == found
    gold = {"5": "Cause-Effect", "6": "Other", "9": "Cause-Effect"}
    assert all(
        row.gold_label == gold[row.example_id.removeprefix("wrench-")] for row in result.rows
    )
    assert len(result.dropped) == (dropped is not None)
    assert all(re.match(str(dropped), note) for note in result.dropped)


def test_tied_majorities_are_decided_by_the_seed_and_about_evenly(tmp_path):
    path = write_wrench(tmp_path, {str(n): wrench_row(0, [0, 1, -1]) for n in range(200)})
    counts = [Counter(r.label for r in read_wrench(path, labels="majority", seed=s).rows)
              for s in (0, 0, 1)]  # fmt: skip
    assert counts[0] == counts[1] != counts[2]
    # Binomial(200, 1/2) has standard deviation 7; the bound is five of them.
    assert all(abs(count["Other"] - 100) < 35 for count in counts)


@pytest.mark.parametrize(
    ("row", "labels", "message"),
    [
        (wrench_row(4, [0]), "gold", r"row '5': unknown label 4; label.json names \[0, 1\]"),
        (wrench_row(0, [7]), "majority", r"row '5': unknown label 7"),
        (wrench_row(0, [0]), "function:1", r"no labelling function 1; the last is 0"),
        (wrench_row(0, [0]), "best", r"labels 'best': write gold, majority or function:<number>"),
        (
            wrench_row(0, [0], span1=[0, 4]),
            "gold",
            r"span1 \[0, 4\] does not cover entity1 'delays'",
        ),
        (wrench_row(0, [0], span1=[-8, -2]), "gold", r"span1 \[-8, -2\] does not cover"),
        (wrench_row(0, [0], entity1="Fog caused", span1=[0, 10]), "gold", "once each and apart"),
        (
            {"label": 0, "data": {}},
            "majority",
            r"'weak_labels' is missing \(present: label, data\)",
        ),
        ([1], "gold", r"row '5': expected a JSON object"),
    ],
)
def test_bad_wrench_rows_are_refused_in_one_line(tmp_path, row, labels, message):
    with pytest.raises(DataError, match=message) as error:
        read_wrench(write_wrench(tmp_path, {"5": row}), labels=labels)
    assert "\n" not in str(error.value)


def test_repeated_keys_of_a_json_file_are_refused_with_both_lines(tmp_path):
    path = write_wrench(tmp_path, ROWS)
    path.write_text(f'{{"5": {json.dumps(ROWS["5"])},\n"5": {json.dumps(ROWS["9"])}}}')
    with pytest.raises(DataError, match=r"w\.json:2: key '5' already stands at line 1"):
        read_wrench(path)


def test_malformed_json_is_refused_with_its_line(tmp_path):
    path = write_wrench(tmp_path, ROWS)
    path.write_text('{"5":\n{"label": 0,}}')
    with pytest.raises(DataError, match=r"w\.json:2: not JSON \(.*column \d+\); correct this line"):
        read_wrench(path)


@pytest.mark.parametrize(("name", "num_rows"), [("train", 1749), ("valid", 178), ("test", 600)])
def test_wrench_counts(shared_data, name, num_rows):
    result = read_wrench(shared_data / "wrench_semeval" / f"{name}.json")
    assert len(result.rows) == num_rows
    assert result.dropped == ()


def test_wrench_majority_is_right_on_four_fifths_of_train(shared_data):
    path = shared_data / "wrench_semeval" / "train.json"
    sure = tied = 0
    for row in json.loads(path.read_text()).values():
        votes = Counter(vote for vote in row["weak_labels"] if vote >= 0)
        best = [vote for vote in votes if votes[vote] == max(votes.values())]
        sure += best == [row["label"]]
        tied += len(best) > 1 and row["label"] in best
    rows = read_wrench(path, labels="majority").rows
    right = sum(row.label == row.gold_label for row in rows)
    assert sure < right < sure + tied
    assert right / len(rows) == pytest.approx(0.8, abs=0.01)
