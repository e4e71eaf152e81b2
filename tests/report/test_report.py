"""The whole report from files: what it shows, what it refuses, and that it stands alone."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from atlantis.errors import DataError, StoreError
from atlantis.report import run, terminal_table
from atlantis.report.charts import PALETTE

HOSTILE = '<script>alert("x")</script> & <img src="https://evil.example/a.png"> <e1>a</e2>'


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def report(inputs, out):
    files = run(inputs, out)
    html = files.html.read_text(encoding="utf-8")
    return html, Page(html), json.loads(files.json.read_text(encoding="utf-8"))


def shown_numbers(document):
    """Every number as shown, wherever it stands in the document."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "shown" and isinstance(value, str):
                yield value
            else:
                yield from shown_numbers(value)
    elif isinstance(document, list):
        for value in document:
            yield from shown_numbers(value)


@pytest.fixture
def full(experiment, tmp_path):
    return report(experiment.inputs(), tmp_path / "out")


def test_the_page_loads_nothing_and_runs_nothing(full):
    html, page, _ = full
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image"}
    links = [value for _, name, value in page.attributes if name.endswith(("src", "href"))]
    assert [link for link in links if not link.startswith("#")] == []
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert len(html) < 500_000


def test_the_same_artifacts_give_the_same_bytes_in_any_process(experiment, tmp_path):
    inputs = experiment.inputs()
    first, second = (run(inputs, tmp_path / name) for name in ("first", "second"))
    code = (
        "import pickle, sys, pathlib; from atlantis.report import run;"
        "run(pickle.loads(bytes.fromhex(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    )
    pickled = pickle.dumps(inputs).hex()
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    subprocess.run(
        [sys.executable, "-c", code, pickled, str(tmp_path / "third")], check=True, env=environment
    )
    for name in ("report.html", "report.json"):
        bytes_ = {(tmp_path / out / name).read_bytes() for out in ("first", "second", "third")}
        assert len(bytes_) == 1
    assert first.html.parent != second.html.parent


def test_every_number_on_the_page_is_in_the_json(full):
    _, page, document = full
    numbers = list(shown_numbers(document))
    assert len(numbers) > 80
    assert [number for number in numbers if number not in page.text] == []
    assert document["verdict"]["sentence"] in page.text


def test_the_json_holds_the_comparison_in_full(experiment, full):
    comparison = json.loads((experiment.root / "comparison.json").read_text())
    rows = {row["arm"]: row for row in full[2]["results"]["rows"]}
    assert list(rows) == list(comparison["arms"])
    for arm, entry in comparison["arms"].items():
        for metric, value in entry["metrics"].items():
            assert {key: rows[arm]["metrics"][metric][key] for key in value} == value


def test_every_section_and_chart_is_there(full):
    html, page, document = full
    for title in (
        "What was run",
        "Results in detail",
        "Does it stand a chance?",
        "Weights",
        "Do low weights find wrong labels?",
        "Lowest and highest weights",
        "Training",
        "Reproduce and read",
    ):
        assert title in page.text
    assert html.count("<figure>") == 9
    assert {row["title"] for row in document["detection"]["rows"]} >= {
        "weight: ATLANTIS",
        "−log p(L)",
        "−log p(r)",
        "−(log p(r) − log p(S))",
        "random order (expected)",
    }
    assert "600, 167 labels wrong (28 %)" in page.text
    assert "official macro-F1" in page.text


def test_charts_are_well_formed_and_name_no_ids_that_could_clash(full):
    charts = re.findall(r"<figure>.*?(<svg.*?</svg>)", full[0], re.DOTALL)
    assert [
        e.get("id") for chart in charts for e in ET.fromstring(chart).iter() if e.get("id")
    ] == []
    assert sum(chart.count("<title>") for chart in charts) > 50


def test_charts_use_only_colours_that_the_dark_screen_repaints(full):
    charts = re.findall(r"<figure>.*?(<svg.*?</svg>)", full[0], re.DOTALL)
    used = set(re.findall(r'(?:fill|stroke)="([^"]+)"', "".join(charts)))
    assert used - {"none", "transparent"} <= set(PALETTE)


def test_hostile_text_stays_text(experiment, tmp_path, changed_comparison):
    experiment.labels[0] = experiment.gold[1] = HOSTILE

    def edit(document):
        document["arms"][HOSTILE] = document["arms"]["oracle"]
        document["interval"] = HOSTILE

    inputs = changed_comparison(experiment.inputs(text=HOSTILE), edit)
    inputs = replace(inputs, name=HOSTILE, notes=(HOSTILE,), recipe={"data": {"source": HOSTILE}})
    html, page, _ = report(inputs, tmp_path / "out")
    assert not page.tags & {"script", "img", "e1"}
    assert page.text.count("<script>") >= 6
    for chart in re.findall(r"<figure>.*?(<svg.*?</svg>)", html, re.DOTALL):
        ET.fromstring(chart)


def test_entities_are_marked(full):
    assert re.search(r'<mark class="e1">\w+</mark> near the old harbour', full[0])


def test_missing_gold_leaves_detection_out_and_says_so(experiment, tmp_path):
    _, page, document = report(experiment.inputs(gold=False), tmp_path / "out")
    assert document["detection"] is None
    assert "No right labels are known" in page.text
    assert "label wrong" not in page.text
    assert {b["kind"] for b in document["weights"]["histogram"]["bins"]} == {"unknown"}


def test_a_single_seed_works_and_is_said(experiment, tmp_path):
    _, page, document = report(experiment.inputs(seeds=(4,)), tmp_path / "out")
    assert "One seed" in page.text
    assert document["results"]["seeds"] == [4]


def test_one_arm_without_weights_works(experiment, tmp_path):
    html, page, document = report(experiment.inputs(arms={"sft": 0.5}), tmp_path / "out")
    assert document["verdict"]["outcome"] is None
    assert (document["weights"], document["examples"]) == (None, None)
    assert page.text.count("Nothing was compared") == 1
    assert html.count("<figure>") == 2


def test_scores_of_the_large_model_may_be_absent(experiment, tmp_path):
    inputs = experiment.inputs()
    inputs = replace(inputs, scores={k: v for k, v in inputs.scores.items() if k != "large"})
    document = report(inputs, tmp_path / "out")[2]
    assert not [row for row in document["detection"]["rows"] if "(L)" in row["title"]]


def test_missing_optional_keys_show_a_dash(experiment, tmp_path):
    inputs = experiment.inputs(seeds=(0,))
    inputs.weights["atlantis"][0].with_suffix(".json").write_text("{}")
    inputs.checks[0].write_text('{"verdict": "unclear", "sentence": "Too few rows."}')
    document = report(inputs, tmp_path / "out")[2]
    assert set(document["weights"]["diagnostics"][0]["shown"].values()) == {"–"}
    assert document["checks"][0]["reference_accuracy"] is None


def test_a_refused_report_leaves_the_old_one(experiment, tmp_path):
    inputs = experiment.inputs()
    before = report(inputs, tmp_path / "out")[0]
    inputs.comparison.write_text('{"arms": {}, "headline": "x"')
    with pytest.raises(DataError, match=r"comparison\.json: not valid JSON"):
        run(inputs, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_bad_artifacts_are_refused_by_name(experiment, tmp_path):
    inputs = experiment.inputs(seeds=(0,))

    def refused(match, **changes):
        with pytest.raises((DataError, StoreError), match=match):
            run(replace(inputs, **changes), tmp_path / "out")

    refused("absent.json: no such file", comparison=tmp_path / "absent.json")
    nan = tmp_path / "nan.json"
    nan.write_text('{"mean": NaN}')
    refused("NaN is no JSON number", checks={0: nan})
    refused("holds no part-", scores={"small": {0: tmp_path}})
    table = pq.read_table(inputs.weights["atlantis"][0])
    other = tmp_path / "other.parquet"
    pq.write_table(table.set_column(0, "example_id", pa.array(map(str, range(600)))), other)
    refused("made from other data", weights={"atlantis": {0: other}})
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), other)
    refused("'train-0000' occurs twice", weights={"atlantis": {0: other}})
    pq.write_table(table.drop_columns(["weight"]), other)
    refused("column 'weight' is missing", weights={"atlantis": {0: other}})


def test_the_terminal_table_holds_the_headline_with_its_intervals(experiment):
    comparison = json.loads(experiment.inputs().comparison.read_text())
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(terminal_table(comparison))
    text = console.export_text()
    assert "official macro-F1, mean [95 % interval], 3 seeds, n = 800" in text
    assert re.search(r"ATLANTIS +│ 0\.88 \[0\.85, 0\.91\] │ +\+0\.40 \[\+0\.35, \+0\.46\]", text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a real browser")
def test_a_real_browser_opens_the_page_without_complaint(full, tmp_path):
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "out" / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert full[2]["verdict"]["sentence"] in Page(done.stdout).text
