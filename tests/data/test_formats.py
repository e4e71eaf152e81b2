"""SemEval and prompt-completion readers: files written by hand, bad files, real counts."""

import re
from collections import Counter

import pytest

from atlantis.data.formats import read_prompt_completion, read_semeval, without_markers
from atlantis.errors import DataError

SEMEVAL = (
    '1\t"The <e1>fog</e1> caused <e2>delays</e2>."\nCause-Effect(e1,e2)\nComment: plain\n\n'
    '2\t"Some <e2>parts</e2> of a <e1>car</e1>."\nOther\nComment:\n\n'
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_semeval_rows_carry_sentence_entities_and_true_label(tmp_path, newline, start):
    path = write(tmp_path / "a.txt", start + SEMEVAL.replace("\n", newline))
    (first, second), dropped = read_semeval(path)
    assert dropped == ()
    assert first.text == "The <e1>fog</e1> caused <e2>delays</e2>."
    assert (first.example_id, first.head, first.tail) == ("1", "fog", "delays")
    assert first.label == first.gold_label == "Cause-Effect(e1,e2)"
    assert (second.head, second.tail, second.label) == ("car", "parts", "Other")
    assert without_markers(first.text) == "The fog caused delays."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t", "1\t", r"a\.txt:5: id '1' already stands at .*a\.txt:1; remove one row"),
        ("2\t", "2 ", r"a\.txt:5: expected a number, a tab and a sentence in double quotes"),
        ("Other", "Cause-Effect(e1, e2)", r"a\.txt:6: unknown label 'Cause-Effect\(e1, e2\)'"),
        ("Other\n", "", r"a\.txt:6: unknown label 'Comment:'"),
        ("Other\nComment:\n", "", r"a\.txt:5: sentence 2 has no label below it; use the file"),
        ("plain\n\n", "plain\n", r"a\.txt:4: a sentence begins here; put a blank line above"),
        ("</e2> of", " of", r"a\.txt:5: expected .* found <e2> <e1> </e1>; mark both"),
        ("<e1>car</e1>", "car", r"a\.txt:5: expected .* once each"),
        ("<e1>car</e1>", "<e1> </e1>", r"a\.txt:5: entity: is empty"),
        (SEMEVAL, "\n \n", r"a\.txt: no rows \(empty\)"),
    ],
)
def test_bad_semeval_files_are_refused_in_one_line(tmp_path, old, new, message):
    path = write(tmp_path / "a.txt", SEMEVAL.replace(old, new))
    with pytest.raises(DataError, match=message) as error:
        read_semeval(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: no such file; correct `path`, or the `root`"):
        read_semeval(tmp_path / "gone.txt")


def test_bytes_that_are_no_utf8_are_refused_with_their_line(tmp_path):
    path = write(tmp_path / "a.txt", SEMEVAL.encode().replace(b"car", b"caf\xe9"))
    with pytest.raises(DataError, match=r"a\.txt:5: invalid UTF-8 .*; save the file as UTF-8"):
        read_semeval(path)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_other"),
    [("TRAIN_FILE.TXT", 8000, 1410), ("TEST_FILE_FULL.TXT", 2717, 454)],
)
def test_semeval_counts(shared_data, name, num_rows, num_other):
    rows = read_semeval(shared_data / "semeval2010_task8" / name).rows
    counts = Counter(row.label for row in rows)
    assert (len(rows), counts["Other"], len(counts)) == (num_rows, num_other, 19)


def test_prompt_completion_rows_are_used_as_they_stand(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        '{"prompt": "Q:\u2028x ", "completion": " yes\\n", "example_id": 3}\r\n\r\n'
        '{"prompt": "Q", "completion": "no", "gold_completion": " yes "}\r\n',
    )
    (first, second), _ = read_prompt_completion(path)
    assert (first.example_id, first.prompt, first.completion) == ("3", "Q:\u2028x ", " yes\n")
    assert (first.label, first.gold_label, first.text) == ("yes", None, None)
    assert (second.label, second.gold_label) == ("no", "yes")
    assert re.fullmatch("[0-9a-f]{16}", second.example_id)


GOOD = '{"prompt": "Q", "completion": "A"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Q"}', r":2: column 'completion' is missing \(present: prompt\); add it"),
        ('{"prompt": " ", "completion": "A"}', r":2: prompt: is empty; fill it in or remove"),
        ('{"prompt": "Q", "completion": ""}', r":2: completion: is empty"),
        ('{"prompt": "Q", "completion": 4}', r":2: completion: expected a string, found 4"),
        ('{"prompt": "Q", "completion": "\\ud800"}', r":2: completion: holds half of a surrogate"),
        ('{"prompt": "Q", "completion": "A", "example_id": []}', r":2: example_id: expected a str"),
        ('{"prompt": "Q"', r":2: not JSON \(.*\); correct this line"),
        ('{"prompt": "Q", "prompt": "R"}', r":2: key 'prompt' already stands at line 2"),
        ("[" * 100_000, r":2: JSON that cannot be read"),
        ("[1, 2]", r":2: expected a JSON object with named columns, found \[1, 2\]"),
        (GOOD.strip(), r":2: id '[0-9a-f]+' already stands at .*p\.jsonl:1"),
    ],
)
def test_bad_prompt_completion_rows_are_refused_in_one_line(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", GOOD + line + "\n")
    with pytest.raises(DataError, match=message) as error:
        read_prompt_completion(path)
    assert "\n" not in str(error.value)
