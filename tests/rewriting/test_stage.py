"""A data set rewritten by a model: what stands on disk, and what a rerun does with it."""

import json

import pytest

from atlantis.data.demonstrations import read_demonstrations
from atlantis.data.sources import open_source
from atlantis.errors import ConfigError, DataError, StoreError
from atlantis.generation.backends import TransformersGeneration
from atlantis.generation.requests import PromptRefusedError
from atlantis.generation.transformers_generator import TransformersGenerator
from atlantis.models.settings import LoadingConfig
from atlantis.rewriting import stage
from atlantis.rewriting.config import RewritingConfig
from atlantis.rewriting.stage import RewritingJob

SETTINGS = {
    "self_attempts": 2,
    "guided_attempts": 2,
    "max_new_tokens": 12,
    "max_copied": 1.0,
    "guided_prompt": "Notes: {solution}\n{prompt}",
}


class Rows:
    def __init__(self, path):
        self.path = path

    def __iter__(self):
        return read_demonstrations(open_source(str(self.path), also=["answer"]))


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


@pytest.fixture
def job(model, demonstrations, verifier):
    def make(**changes):
        settings = SETTINGS | {"verifier": {"kind": "function", "function": verifier}} | changes
        backend = TransformersGeneration(model, LoadingConfig(device="cpu"), batch_size=16)
        config = RewritingConfig.model_validate(settings)
        return RewritingJob(Rows(demonstrations), backend, "tiny", config)

    return make


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(stage, "ROWS_PER_WINDOW", 16)


def accepted_when_cut_off(monkeypatch):
    """An untrained model never stops: what is cut off counts here."""
    monkeypatch.setattr("atlantis.rewriting.window.Rewriter._refusal", lambda *_, **__: None)


def test_the_stored_prompt_never_holds_the_experts_solution(
    job, demonstrations, tmp_path, monkeypatch
):
    accepted_when_cut_off(monkeypatch)
    report = job().run(tmp_path / "out.jsonl")
    rows, given = lines(tmp_path / "out.jsonl"), lines(demonstrations)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in given]
    assert min(report["sources"].values()) > 0  # all three stages occurred
    for row in rows:
        assert "EXPERT" not in row["prompt"]
        assert ("EXPERT" in row["completion"]) == (row["source"] == "expert")


def test_the_report_counts_what_the_rows_say(job, tmp_path, monkeypatch):
    accepted_when_cut_off(monkeypatch)
    report = job().run(tmp_path / "out.jsonl")
    rows = lines(tmp_path / "out.jsonl")
    assert report["num_rows"] == len(rows) == 40
    for source, count in report["sources"].items():
        assert count == sum(row["source"] == source for row in rows)
    assert report["stages"]["self"]["tried"] == 80
    assert report["stages"]["guided"]["tried"] == 2 * (40 - report["sources"]["self"])
    assert report["stages"]["guided"]["solved"] == report["sources"]["guided"]
    for name, key in (("before", "expert"), ("after", "completion")):
        total = sum(row[f"{key}_logprob"] for row in rows)
        tokens = sum(row[f"{key}_tokens"] for row in rows)
        assert report["policy_gap"][name] == pytest.approx(total / tokens)


def test_the_log_probabilities_are_the_scorers(job, model, tmp_path, monkeypatch):
    from atlantis import api

    accepted_when_cut_off(monkeypatch)
    job().run(tmp_path / "out.jsonl")
    table = api.score(
        str(tmp_path / "out.jsonl"), model=model, out=tmp_path / "scores", device="cpu"
    ).read()
    scored = dict(
        zip(table["example_id"].to_pylist(), table["sequence_logprob"].to_pylist(), strict=True)
    )
    for row in lines(tmp_path / "out.jsonl"):
        assert row["completion_logprob"] == pytest.approx(scored[row["example_id"]], abs=1e-4)


def test_a_file_that_is_there_is_left_alone_and_no_model_is_loaded(job, tmp_path, monkeypatch):
    first = job().run(tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(TransformersGeneration, "open", None)
    assert job().run(tmp_path / "out.jsonl") == first
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_other_settings_are_refused_by_name(job, tmp_path):
    job().run(tmp_path / "out.jsonl")
    with pytest.raises(StoreError, match="rewriting"):
        job(seed=1).run(tmp_path / "out.jsonl")
    (tmp_path / "strange.jsonl").write_text("")
    with pytest.raises(StoreError, match="other rows"):
        job().run(tmp_path / "strange.jsonl")


def test_the_windows_do_not_change_the_rows(job, tmp_path, monkeypatch):
    accepted_when_cut_off(monkeypatch)
    job().run(tmp_path / "small.jsonl")
    monkeypatch.setattr(stage, "ROWS_PER_WINDOW", 512)
    job().run(tmp_path / "one.jsonl")
    small, one = lines(tmp_path / "small.jsonl"), lines(tmp_path / "one.jsonl")
    names = ("example_id", "source", "completion", "statuses")
    assert [[row[n] for n in names] for row in small] == [[row[n] for n in names] for row in one]


def test_a_prompt_that_is_too_long_is_not_asked_and_the_rest_goes_on(job, demonstrations, tmp_path):
    given = lines(demonstrations)
    given[3]["completion"] = " long" * 300
    given[5]["prompt"] = "storm " * 300
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in given))
    report = job().run(tmp_path / "out.jsonl")
    assert report["stages"]["self"]["unasked"] == 1
    assert report["stages"]["guided"]["unasked"] == 2
    assert "'r3/guided'" in report["unasked"][0]
    rows = lines(tmp_path / "out.jsonl")
    assert (rows[3]["self_tried"], rows[3]["guided_tried"]) == (2, 0)
    assert (rows[5]["self_tried"], rows[5]["source"]) == (0, "expert")
    assert report["policy_gap"]["num_unread"] == 2


def test_a_prompt_that_the_server_refuses_is_counted_and_the_rest_goes_on(
    job, tmp_path, monkeypatch
):
    accepted_when_cut_off(monkeypatch)
    job().run(tmp_path / "all.jsonl")
    complete = TransformersGenerator.complete

    def refusing(self, requests, config):
        for unit in complete(self, requests, config):
            yield [
                (place, PromptRefusedError("example 'r3': refused"))
                if requests[place].prompt.example_id == "r3"
                else (place, said)
                for place, said in unit
            ]

    monkeypatch.setattr(TransformersGenerator, "complete", refusing)
    report = job().run(tmp_path / "out.jsonl")
    assert report["unasked"] == ["example 'r3': refused"]
    rows, undisturbed = lines(tmp_path / "out.jsonl"), lines(tmp_path / "all.jsonl")
    assert rows[:3] + rows[4:] == undisturbed[:3] + undisturbed[4:]
    assert (rows[3]["self_tried"], rows[3]["unasked"]) == (0, {"self": "example 'r3': refused"})
    assert rows[3]["guided_tried"] == 2  # that prompt is another one


def test_dropped_rows_are_counted_and_not_written(job, tmp_path):
    report = job(fallback="drop").run(tmp_path / "out.jsonl")
    assert report["num_dropped"] == 40  # all were cut off
    assert report["refused"].keys() == {"truncated"}
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no idea')", "no idea"),
        ("return 'perhaps'", "perhaps"),
        ("import time; time.sleep(60)", "0.3 s"),
    ],
)
def test_a_verifier_that_fails_is_reported_with_the_id(job, tmp_path, body, words):
    (tmp_path / "bad.py").write_text(f"def judge(prompt, completion, gold):\n    {body}\n")
    verifier = {"kind": "function", "function": "bad:judge", "deadline_seconds": 0.3}
    (tmp_path / "rows.jsonl").write_text(
        '{"example_id": "only", "prompt": "the storm", "completion": " caused"}\n'
    )
    report = job(verifier=verifier, self_attempts=1, guided_attempts=0).run(tmp_path / "out.jsonl")
    (error,) = report["verifier_errors"]
    assert error["example_id"] == "only"
    assert "'only'" in error["detail"]
    assert words in error["detail"]
    assert report["sources"]["expert"] == 1


def test_a_gold_that_cannot_be_graded_is_refused_before_anything_is_loaded(
    job, tmp_path, monkeypatch
):
    monkeypatch.setattr(TransformersGeneration, "open", None)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2+2", "completion": " 4", "answer": "4"}\n')
    verifier = {"kind": "maths", "grader": "relative_tolerance"}
    (tmp_path / "rows.jsonl").write_text(
        '{"example_id": "a", "prompt": "2+2", "completion": " \\\\boxed{4}"}\n'
        '{"example_id": "b", "prompt": "2+2", "completion": " it is so"}\n'
    )
    with pytest.raises(DataError, match=r"'b'.*no answer in the completion"):
        job(verifier=verifier).run(tmp_path / "out.jsonl")


def test_most_likely_is_refused_where_nobody_can_tell(job, tmp_path):
    from atlantis.generation.backends import ServerGeneration

    made = job(select="most_likely")
    remote = RewritingJob(
        made.rows, ServerGeneration("http://localhost:9/v1", "m"), "m", made.config
    )
    with pytest.raises(ConfigError, match="most_likely needs"):
        remote.run(tmp_path / "out.jsonl")
