"""``atlantis report --figure`` draws what ``compare --figure`` draws; what `report` refuses."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from atlantis.weighting.weights import Weights


@pytest.fixture
def weights(tmp_path):
    """Three weightings of the same rows, one of which could not be weighed."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.2, 60)
    for name in ("qwen", "gemma", "llama"):
        logs = [*(shared + rng.normal(0, 0.2, 60)).tolist(), None]
        Weights(
            [f"row{place:02}" for place in range(61)],
            ["ok"] * 60 + ["too_long"],
            logs,
            [None if log is None else float(np.exp(log)) for log in logs],
            {"log_normaliser": 0.1},
        ).save(tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in ("qwen", "gemma", "llama")}


def test_one_two_or_three_families_are_drawn_on_both_axes(weights, tmp_path, atlantis):
    for count in (1, 2, 3):
        figure = tmp_path / f"figure{count}.svg"
        done = atlantis("report", "--figure", figure, *list(weights.values())[:count])
        joint = tmp_path / f"figure{count}-joint.svg"
        expected = [str(figure), str(joint)] if count == 2 else [str(figure)]
        assert (done.code, done.out) == (0, expected), done.err
        assert joint.exists() == (count == 2)
        drawn = figure.read_text()
        ET.fromstring(drawn)  # a file of its own: with its name spaces
        assert 'xmlns="http://www.w3.org/2000/svg"' in drawn
        assert drawn.count(">ratio<") == 2  # under the linear axis and the logarithmic one
        shown = [name for name in weights if f">{name}<" in drawn]
        assert shown == (list(weights)[:count] if count > 1 else [])


def test_a_page_holds_both_charts_and_loads_nothing(weights, tmp_path, atlantis):
    page = tmp_path / "figure.html"
    files = [weights["qwen"], weights["gemma"]]
    done = atlantis("report", *files, "--figure", page, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out[0]) == {"figures": [str(page)]}
    html = page.read_text()
    assert html.count("<svg") == 2
    assert "prefers-color-scheme:dark" in html
    assert not re.search(r"https?://|<script|url\(", html)


def test_report_and_compare_draw_the_same(weights, tmp_path, atlantis):
    files = [weights["qwen"], weights["gemma"]]
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    assert atlantis("report", *files, "--figure", first).code == 0
    assert atlantis("compare", *files, "--figure", second, "--num-bootstrap", "100").code == 0
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a-joint.svg").read_bytes() == (tmp_path / "b-joint.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("qwen", "--figure", "f.png"), "name a file that ends in .svg or .html"),
        (("qwen", "qwen", "--figure", "f.svg"), "is named twice"),
        (("qwen", "other", "--figure", "f.svg"), "the weights are of other rows"),
        (("qwen", "--figure", "f.svg", "--set", "a=b"), "--set and --out belong to a recipe"),
        (("missing", "--figure", "f.svg"), "missing.parquet"),
        (("qwen", "gemma"), "name one run folder or recipe"),
        (("empty",), "no report.json"),
        (("quickstart-2",), "neither a recipe file nor a built-in one"),
        (("empty", "--out", "there"), "leave --set and --out out"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(
    weights, tmp_path, atlantis, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Weights(["x"], ["ok"], [0.0], [1.0], {}).save(tmp_path / "other.parquet")
    named = {name: f"{name}.parquet" for name in (*weights, "other", "missing")}
    done = atlantis("report", *(named.get(each, each) for each in arguments))
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done.err
    assert message in done.err[0]
    assert not (tmp_path / "f.svg").exists()


def test_a_report_of_something_else_is_refused(tmp_path, atlantis):
    (tmp_path / "report.json").write_text("[1]")
    done = atlantis("report", tmp_path)
    assert (done.code, len(done.err)) == (2, 1)
    assert "not a report of 'atlantis run'" in done.err[0]
