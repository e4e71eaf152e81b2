"""``atlantis rewrite`` from the command line: files, table, warnings and refusals."""

import json
import zlib

import pytest

VERIFIER = """
import zlib

def likes(prompt, completion, gold):
    return zlib.crc32((completion + gold).encode()) % 3 == 0

def fails(prompt, completion, gold):
    raise ValueError("no idea")
"""
GUIDED = "{solution} w0 {answer} {prompt}"
SHORT = ("--max-new-tokens", 30, "--self-attempts", 2, "--guided-attempts", 2, "--device", "cpu")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the command, with verifiers and a short guided prompt in it."""
    (tmp_path / "liking.py").write_text(VERIFIER)
    (tmp_path / "guided.txt").write_text(GUIDED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder):
    rows = [
        {
            "example_id": f"r{row}",
            "prompt": f"w{row} w{row % 7} w{row % 3}",
            "completion": f" maybe w{row} maybe",
            "answer": row,
        }
        for row in range(24)
    ]
    return write(folder / "rows.jsonl", rows)


@pytest.fixture
def rewrite(atlantis, tiny_models, folder):
    """Runs the command with a tiny model; what is given last counts."""

    def run(data, *options, out="out.jsonl", verifier="liking:likes"):
        model = ("--model", tiny_models / "large", "--out", folder / out, "--verifier", verifier)
        return atlantis("rewrite", data, *model, *SHORT, *options)

    return run


def test_rows_are_rewritten_where_the_model_is_right(rewrite, data, folder):
    done = rewrite(data, "--guided-prompt", "guided.txt")
    assert done.code == 0, done.err
    rows, given = rows_of(folder / "out.jsonl"), rows_of(data)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in given]
    assert {row["source"] for row in rows} == {"self", "guided", "expert"}
    for row, expert in zip(rows, given, strict=True):
        is_right = zlib.crc32((row["completion"] + row["answer"]).encode()) % 3 == 0
        assert is_right or row["source"] == "expert"
        assert (row["completion"] == expert["completion"]) == (row["source"] == "expert")
        assert row["verifier"].startswith("function liking:likes ")
    shown = "\n".join(done.out)
    for words in ("24 rows", "self: samples right", "refused: truncated", "per token, expert"):
        assert words in shown
    assert done.out[-1] == str(folder / "out.jsonl")


def test_a_machine_reads_the_report_and_a_rerun_loads_nothing(rewrite, data, folder, monkeypatch):
    asked = (data, "--guided-prompt", "guided.txt", "--select", "most_likely", "--json")
    (line,) = rewrite(*asked).out
    report = json.loads((folder / "out.jsonl.report.json").read_text())
    assert json.loads(line) == {"out": str(folder / "out.jsonl")} | report
    assert sum(report["sources"].values()) == report["num_rows"] == 24
    monkeypatch.setattr("atlantis.generation.backends.load_model", lambda *_: pytest.fail("loaded"))
    assert rewrite(*asked).out == [line]
    other = rewrite(*asked, "--seed", 1)
    assert (other.code, len(other.err)) == (2, 1)
    assert "rewriting" in other.err[0]


def test_the_guided_prompt_of_a_file_is_the_one_that_counts(rewrite, data, folder):
    assert rewrite(data, "--guided-prompt", "guided.txt").code == 0
    manifest = json.loads((folder / "out.jsonl.manifest.json").read_text())
    assert manifest["fingerprint"]["rewriting"]["guided_prompt"] == GUIDED
    # Our own is longer than this model's 64 tokens: nothing can be asked.
    own = rewrite(data, out="own.jsonl")
    assert own.code == 0
    assert any("not asked: example 'r0/guided'" in line for line in own.err)
    assert {row["source"] for row in rows_of(folder / "own.jsonl")} == {"self", "expert"}


@pytest.mark.parametrize("grader", ["math_verify", "relative_tolerance"])
def test_maths_problems_with_solutions_are_demonstrations(rewrite, folder, grader):
    problems = write(
        folder / "problems.jsonl",
        [
            {"unique_id": "p/1", "problem": "w1 w2", "answer": "4", "solution": r"w3 \boxed{4}"},
            {"problem": "w5", "solution": r"w6 w7 so \boxed{\frac{1}{2}}"},
        ],
    )
    asked = ("--problem-prompt", "w0 {problem} w9", "--grader", grader)
    done = rewrite(problems, *asked, "--guided-prompt", "guided.txt", verifier="maths")
    assert done.code == 0, done.err
    first, second = rows_of(folder / "out.jsonl")
    assert (first["example_id"], first["prompt"]) == ("p/1", "w0 w1 w2 w9")
    assert (first["completion"], first["answer"]) == (r" w3 \boxed{4}", "4")
    assert second["answer"] == r"\frac{1}{2}"
    assert first["source"] == second["source"] == "expert"  # it says no numbers
    assert first["verifier"].startswith(grader.replace("math_verify", "math_verify "))


def test_problems_may_be_asked_in_a_chat_and_what_is_left_out_is_said(rewrite, folder):
    problems = write(
        folder / "problems.jsonl",
        [
            {"problem": "w1 w2", "solution": r"w3 \boxed{4}"},
            {"problem": "w5", "solution": r"w6 \boxed{}"},
        ],
    )
    asked = ("--problem-prompt", "w0 {problem}", "--chat", "--grader", "relative_tolerance")
    done = rewrite(problems, *asked, "--guided-prompt", "guided.txt", verifier="maths")
    assert done.code == 0, done.err
    (row,) = rows_of(folder / "out.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "w0 w1 w2"}]
    assert row["completion"] == [{"role": "assistant", "content": r"w3 \boxed{4}"}]
    assert any("left out" in line and ":2" in line for line in done.err)


def test_problems_without_a_solution_are_refused_by_name(rewrite, folder):
    problems = write(folder / "p.jsonl", [{"id": "bare", "problem": "w1", "answer": "4"}])
    found = rewrite(problems, "--problem-prompt", "{problem}", verifier="maths")
    assert (found.code, len(found.err)) == (2, 1)
    assert "'bare' has no solution" in found.err[0]


def test_a_verifier_that_raises_is_a_warning_with_the_id(rewrite, data, folder):
    done = rewrite(data, "--guided-attempts", 0, verifier="liking:fails")
    assert done.code == 0
    warned = [line for line in done.err if line.startswith("warning: ")]
    assert "self attempt 0" in warned[0]
    assert "'r0'" in warned[0]
    assert "no idea" in warned[0]
    rows = rows_of(folder / "out.jsonl")
    assert {row["source"] for row in rows} == {"expert"}
    assert rows[0]["verifier_errors"][1]["attempt"] == 1


def test_labels_survive_or_the_row_stays(rewrite, folder):
    rows = [{"prompt": f"w{row}", "completion": " yes"} for row in range(3)]
    data = write(folder / "labels.jsonl", rows)
    done = rewrite(data, "--guided-prompt", "g.txt", verifier="label")
    assert (done.code, len(done.err)) == (2, 1)  # there is no g.txt
    assert "g.txt" in done.err[0]
    assert rewrite(data, "--guided-attempts", 0, verifier="label").code == 0
    for row in rows_of(folder / "out.jsonl"):
        assert row["completion"].strip() == row["answer"] == "yes"
    found = rewrite(data, "--guided-attempts", 0, verifier="label-at-end", out="end.jsonl")
    assert (found.code, len(found.err)) == (2, 1)
    assert "no column answer" in found.err[0]


def test_rows_that_stay_unsolved_can_be_dropped(rewrite, data, folder):
    done = rewrite(data, "--guided-prompt", "guided.txt", "--fallback", "drop", "--json")
    report = json.loads(done.out[0])
    rows = rows_of(folder / "out.jsonl")
    assert report["num_rows"] + report["num_dropped"] == 24
    assert len(rows) == report["num_rows"] < 24
    assert "expert" not in {row["source"] for row in rows}


@pytest.mark.parametrize(
    ("options", "verifier", "reason"),
    [
        (["--answer-column", "gold"], "liking:likes", "column 'gold' is missing"),
        (["--chat"], "liking:likes", "--chat has no effect"),
        (["--out", "o.txt"], "liking:likes", "ends in .jsonl"),
        ([], "judge", "choose maths, label, label-at-end or MODULE:FUNCTION"),
        ([], "liking:hates", "hates"),
        ([], "nowhere:likes", "nowhere"),
        (["--grader", "math_verify"], "liking:likes", "--grader has no effect"),
        (["--deadline", "3"], "label", "--deadline has no effect"),
        (["--grader", "relative_tolerance", "--deadline", "3"], "maths", "has no effect on grader"),
        (
            ["--self-attempts", "0", "--guided-attempts", "0"],
            "liking:likes",
            "nothing is rewritten",
        ),
        (["--temperature", "0"], "liking:likes", "use self_attempts 1"),
        (["--select", "best"], "liking:likes", "most_likely"),
        (["--fallback", "keep"], "liking:likes", "'drop'"),
        (["--leak", "("], "liking:likes", "no regular expression"),
        (["--max-new-tokens", "64"], "liking:likes", "more than the model's 64"),
        (["--problem-prompt", "solve it"], "maths", "{problem} is missing"),
        (["--problem-prompt", "{problem}", "--answer-column", "a"], "maths", "has no effect"),
        (["--base-url", "http://x/v1"], "liking:likes", "--base-url has no effect"),
        (["--backend", "server"], "liking:likes", "needs --base-url"),
        (["--backend", "tgi"], "liking:likes", "choose transformers, server"),
        (["--model", "./nowhere"], "liking:likes", "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(rewrite, data, folder, options, verifier, reason):
    found = rewrite(data, *options, verifier=verifier)
    assert (found.code, found.out, len(found.err)) == (2, [], 1), found.err
    assert reason in found.err[0]
    assert not (folder / "out.jsonl").exists()


def test_the_most_likely_one_needs_a_model_in_this_process(rewrite, data):
    server = ("--backend", "server", "--base-url", "http://127.0.0.1:9/v1")
    found = rewrite(data, *server, "--device", "auto", "--select", "most_likely")
    assert (found.code, len(found.err)) == (2, 1)
    assert "most_likely needs the back end transformers" in found.err[0]
