"""``atlantis generate`` against a loop without any cache, killed, repeated and misused."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlantis.data.sources import open_source
from atlantis.errors import ResumableError
from atlantis.generation.transformers_generator import TransformersGenerator

PROMPTS = ["w1 w2 w3 w4 yes", "w5", "w7 no w9", "w30 w31 w2", "maybe w3 w4 w8 w20 w21", "w9 w9"]
NEW = 6


@pytest.fixture(scope="session")
def family(tiny_models, tmp_path_factory):
    """`large`, `small` and a `reference` of small's shape with other weights."""
    folder = tmp_path_factory.mktemp("family")
    for name in ("large", "small"):
        shutil.copytree(tiny_models / name, folder / name)
    shutil.copytree(tiny_models / "small", folder / "reference")
    model = AutoModelForCausalLM.from_pretrained(folder / "small")
    torch.manual_seed(9)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder / "reference")
    return folder


@pytest.fixture(scope="session")
def three(family):
    """The three models, loaded."""
    names = ("large", "small", "reference")
    return [AutoModelForCausalLM.from_pretrained(family / name).eval() for name in names]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"example_id": f"r{i}", "prompt": text} for i, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def proxy(family):
    return [
        part
        for role in ("large", "small", "reference")
        for part in ("--proxy", f"{role}={family / role}")
    ]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.inference_mode()
def naive(three, tokenizer, text, *, alpha):
    """Greedy text of one prompt, from the formula, without a cache."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(NEW):
        large, small, reference = (model(input_ids=ids).logits[:, -1] for model in three)
        chosen = (large + alpha * (reference - small)).argmax(-1)
        ids = torch.cat([ids, chosen[:, None]], 1)
        if int(chosen) == 0:
            break
    new = ids[0, start:].tolist()
    reason = "stop" if new[-1] == 0 else "length"
    whole = tokenizer.decode(ids[0], skip_special_tokens=True)
    return whole.removeprefix(text), len(new), reason


def test_a_file_of_prompts_is_completed_as_by_the_uncached_loop(
    atlantis, family, three, data, tmp_path
):
    out = tmp_path / "out.jsonl"
    options = ("--data", data, "--out", out, "--max-new-tokens", NEW, "--batch-size", 4)
    done = atlantis("generate", *proxy(family), "--alpha", 1.5, *options)
    assert (done.code, done.out) == (0, [str(out)]), done.err
    tokenizer = AutoTokenizer.from_pretrained(family / "large")
    rows = rows_of(out)
    assert [row["example_id"] for row in rows] == [f"r{i}" for i in range(len(PROMPTS))]
    for row, prompt in zip(rows, PROMPTS, strict=True):
        found = (row["completion"], row["num_tokens"], row["finish_reason"])
        assert found == naive(three, tokenizer, prompt, alpha=1.5)
        assert (row["prompt"], row["alpha"]) == (prompt, 1.5)
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_sweep_begins_with_the_large_model_alone(atlantis, family, data, tmp_path):
    sweep, alone = tmp_path / "sweep.jsonl", tmp_path / "alone.jsonl"
    asked = ("--data", data, "--max-new-tokens", NEW)
    alphas = ("--alpha", 0, "--alpha", 1, "--alpha", 2.5)
    assert atlantis("generate", *proxy(family), *alphas, *asked, "--out", sweep).code == 0
    assert atlantis("generate", "--model", family / "large", *asked, "--out", alone).code == 0
    rows = rows_of(sweep)
    assert [row["alpha"] for row in rows] == [0.0] * 6 + [1.0] * 6 + [2.5] * 6
    assert rows[7]["example_id"] == "r1/alpha=1"
    assert rows[7]["prompt_id"] == "r1"
    said = [[row["completion"] for row in rows[start : start + 6]] for start in (0, 6, 12)]
    assert said[0] == [row["completion"] for row in rows_of(alone)]
    assert said[0] != said[1]
    assert said[1] != said[2]


def test_samples_follow_their_seed(atlantis, family, data, tmp_path):
    sampling = ("--temperature", 1.2, "--top-p", 0.95, "--num-return-sequences", 3)
    asked = ("--data", data, "--max-new-tokens", NEW, "--batch-size", 2, *sampling)
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.jsonl"
        assert atlantis("generate", *proxy(family), *asked, "--seed", seed, "--out", out).code == 0
        texts[name] = out.read_text()
    assert texts["a"] == texts["b"] != texts["c"]
    rows = rows_of(tmp_path / "a.jsonl")
    assert [row["example_id"] for row in rows[:4]] == ["r0/0", "r0/1", "r0/2", "r1/0"]
    assert len({row["completion"] for row in rows[:3]}) > 1


def test_beams_come_with_the_most_likely_first(atlantis, family, data, tmp_path):
    out, best = tmp_path / "out.jsonl", tmp_path / "best.jsonl"
    asked = ("--data", data, "--max-new-tokens", NEW, "--num-beams", 3)
    model = ("--model", family / "large")
    many = ("--num-return-sequences", 3)
    assert atlantis("generate", *model, *asked, *many, "--out", out).code == 0
    assert atlantis("generate", *model, *asked, "--out", best).code == 0
    first = [row["completion"] for row in rows_of(out) if row["sample"] == 0]
    assert first == [row["completion"] for row in rows_of(best)]


def test_a_rerun_goes_on_and_gives_the_same_bytes(atlantis, family, data, tmp_path, monkeypatch):
    sampling = ("--temperature", 1, "--alpha", 0.5, "--alpha", 1)
    asked = ("--data", data, "--max-new-tokens", NEW, "--batch-size", 2, *sampling)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert atlantis("generate", *proxy(family), *asked, "--out", whole).code == 0

    calls, generate = [], TransformersGenerator._generate

    def failing(self, batch, config):
        if len(calls) == 4:
            raise ResumableError("the lights went out")
        calls.append([request.prompt.example_id for request, _ in batch])
        return generate(self, batch, config)

    monkeypatch.setattr(TransformersGenerator, "_generate", failing)
    stopped = atlantis("generate", *proxy(family), *asked, "--out", out)
    assert stopped.code == 1
    assert not out.exists()
    first, calls[:] = [*calls], []
    again = atlantis("generate", *proxy(family), *asked, "--out", out)
    assert again.code == 0, again.err
    assert (len(first), len(calls)) == (4, 2)
    assert out.read_bytes() == whole.read_bytes()


def test_a_finished_file_is_found_again_and_nothing_is_loaded(
    atlantis, family, data, tmp_path, monkeypatch
):
    out = tmp_path / "out.jsonl"
    asked = ("--model", family / "small", "--data", data, "--out", out, "--max-new-tokens", 2)
    assert json.loads(atlantis("generate", *asked, "--json").out[0])["cached"] is False
    monkeypatch.setattr("atlantis.generation.backends.load_model", lambda *_: pytest.fail("loaded"))
    assert json.loads(atlantis("generate", *asked, "--json").out[0])["cached"] is True
    other = atlantis("generate", *asked, "--seed", 3)
    assert (other.code, len(other.err)) == (2, 1)
    assert "'seed': 3" in other.err[0]


def test_a_file_of_something_else_is_left_alone(atlantis, family, data, tmp_path):
    out = tmp_path / "mine.jsonl"
    out.write_text("my only copy\n")
    found = atlantis("generate", "--model", family / "small", "--data", data, "--out", out)
    assert (found.code, len(found.err)) == (2, 1)
    assert out.read_text() == "my only copy\n"


def test_chats_are_completed_to_chats_that_can_be_read_again(atlantis, family, tmp_path):
    data, out = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    user = {"role": "user", "content": "w1 w2"}
    answered = [user, {"role": "assistant", "content": "w3"}]
    rows = [
        {"messages": answered},
        {"example_id": "longer", "messages": [*answered, {"role": "user", "content": "w5"}]},
        {"example_id": "listed", "prompt": [user]},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }} no {% endfor %}"
        "{% if add_generation_prompt %}yes{% endif %}"
    )
    asked = ("--chat-template", template, "--data", data, "--out", out, "--max-new-tokens", 4)
    done = atlantis("generate", "--model", family / "small", *asked)
    assert done.code == 0, done.err
    found = rows_of(out)
    assert found[0]["prompt"] == found[2]["prompt"] == [user]  # the last answer is made anew
    assert found[0]["completion"] == found[2]["completion"]
    assert len(found[1]["prompt"]) == 3
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"prompt": "w1 w2 no yes"}) + "\n")
    text = tmp_path / "text.jsonl"
    asked = ("--data", plain, "--out", text, "--max-new-tokens", 4)
    assert atlantis("generate", "--model", family / "small", *asked).code == 0
    said = rows_of(text)[0]["completion"].strip()
    assert found[0]["completion"] == [{"role": "assistant", "content": said}]
    assert [row.example_id for row in open_source(str(out))][1:] == ["longer", "listed"]


def test_a_prompt_is_streamed_to_the_terminal(atlantis, family, three):
    asked = ("--prompt", PROMPTS[0], "--max-new-tokens", NEW)
    tokenizer = AutoTokenizer.from_pretrained(family / "large")
    shown = atlantis("generate", *proxy(family), *asked)
    assert shown.code == 0, shown.err
    expected = naive(three, tokenizer, PROMPTS[0], alpha=1.0)
    assert " ".join(shown.out).split() == expected[0].split()
    line = json.loads(atlantis("generate", *proxy(family), *asked, "--json").out[-1])
    (said,) = line["completions"]
    found = (said["text"], said["num_tokens"], said["finish_reason"])
    assert (*found, said["alpha"]) == (*expected, 1.0)


def test_a_sweep_of_one_prompt_names_each_alpha(atlantis, family):
    asked = ("--prompt", "w1 w2", "--max-new-tokens", 3, "--alpha", 0, "--alpha", 2)
    shown = atlantis("generate", *proxy(family), *asked)
    assert shown.code == 0
    assert shown.err == ["alpha 0:", "alpha 2:"]


def test_several_completions_of_a_prompt_are_printed_one_by_one(atlantis, family):
    asked = ("--prompt", "w1 w2", "--max-new-tokens", 3, "--num-beams", 2)
    shown = atlantis("generate", *proxy(family), *asked, "--num-return-sequences", 2)
    assert (shown.code, len(shown.out)) == (0, 2)


def test_a_user_speaks_through_the_chat_template(atlantis, family):
    asked = ("--model", family / "small", "--max-new-tokens", 3, "--json")
    # Without a template of its own: speaker, colon, text, blank line.
    chat = atlantis("generate", *asked, "--prompt", "w1 w2", "--chat")
    text = atlantis("generate", *asked, "--prompt", "User: w1 w2\n\nAssistant:")
    assert chat.code == 0
    assert chat.out == text.out


SERVER = ["--backend", "server", "--base-url", "http://127.0.0.1:9/v1"]
THREE = ["--proxy", "large=L", "--proxy", "small=S", "--proxy", "reference=R"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "give --prompt"),
        (["--prompt", "w1", "--data", "D", "--out", "o.jsonl"], "give --prompt"),
        (["--prompt", " "], "--prompt is empty"),
        (["--data", "D"], "belong together"),
        (["--prompt", "w1", "--out", "o.jsonl"], "belong together"),
        (["--data", "D", "--out", "o.txt"], "ends in .jsonl"),
        (["--prompt", "w1"], "give --model, or --proxy"),
        (["--prompt", "w1", "--model", "L", *THREE], "give --model, or --proxy"),
        (["--prompt", "w1", *THREE[:4]], "reference=MODEL is missing"),
        (["--prompt", "w1", "--proxy", "huge=L"], "write large=MODEL"),
        (["--prompt", "w1", *THREE, "--proxy", "small=S"], "small stands there twice"),
        (["--prompt", "w1", "--model", "L", "--alpha", "1"], "no effect without --proxy"),
        (["--prompt", "w1", *THREE, "--alpha", "1", "--alpha", "1"], "twice"),
        (["--prompt", "w1", *THREE, "--alpha", "nan"], "finite"),
        (["--prompt", "w1", *THREE, "--adapter", "x"], "belongs to one model"),
        (["--prompt", "w1", "--model", "L", "--top-p", "0.5"], "needs a temperature"),
        (
            ["--prompt", "w1", "--model", "L", "--temperature", "1", "--num-beams", "2"],
            "beam search does not sample",
        ),
        (["--prompt", "w1", "--model", "L", "--num-return-sequences", "2"], "would be the same"),
        (["--prompt", "w1", "--model", "L", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--prompt", "w1", "--model", "L", "--max-new-tokens", "64"], "more than the model's 64"),
        (["--prompt", "w1", "--model", "./nowhere"], "no such folder"),
        (["--model", "L", "--data", "nowhere.jsonl", "--out", "o.jsonl"], "no such file"),
        (["--prompt", "w1", "--model", "L", "--backend", "tgi"], "choose transformers, server"),
        (["--prompt", "w1", "--model", "L", "--backend", "server"], "needs --base-url"),
        (["--prompt", "w1", "--model", "L", "--base-url", "http://x"], "--base-url has no effect"),
        (["--prompt", "w1", "--model", "L", *SERVER, "--batch-size", "3"], "--batch-size has no"),
        (["--prompt", "w1", "--model", "L", *SERVER, "--dtype", "bfloat16"], "--dtype has no"),
        (["--prompt", "w1", *THREE, *SERVER], "--proxy needs logits"),
        (["--prompt", "w1", "--model", "L", *SERVER, "--num-beams", "2"], "no beam search"),
        (["--prompt", "w1", "--model", "L", *SERVER[:3], "host:1"], "give an address like"),
        (["--prompt", "w1", "--model", "L", "--backend", "vllm"], "this needs vLLM"),
        (["--data", "D", "--out", "o.jsonl", "--model", "L", "--backend", "vllm"], "needs vLLM"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(
    atlantis, family, data, tmp_path, monkeypatch, options, reason
):
    monkeypatch.chdir(tmp_path)
    named = {"D": data, "L": family / "large"} | {
        f"{role}={letter}": f"{role}={family / role}"
        for role, letter in (("large", "L"), ("small", "S"), ("reference", "R"))
    }
    found = atlantis("generate", *(named.get(option, option) for option in options))
    assert (found.code, found.out, len(found.err)) == (2, [], 1), found.err
    assert reason in found.err[0]
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no rows"),
        ('{"completion": "x"}', "column 'prompt' is missing"),
        ('{"prompt": "  "}', "is empty"),
        ('{"prompt": "w1", "system": "be kind"}', "'system' would have no effect"),
        ('{"prompt": "w1", "messages": []}', "keep one"),
        ('{"messages": [{"role": "assistant", "content": "w1"}]}', "the assistant speaks first"),
        ('{"prompt": "w1"}\n{"prompt": "w1"}', "already stands at"),
        ('{"prompt": "w1"', "not JSON"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_generated(atlantis, family, tmp_path, line, reason):
    data, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    data.write_text(line)
    found = atlantis("generate", "--model", family / "small", "--data", data, "--out", out)
    assert (found.code, len(found.err)) == (2, 1), found.err
    assert reason in found.err[0]
    assert not out.exists()


def test_other_tokenizers_are_refused(atlantis, family, tmp_path):
    shutil.copytree(family / "small", tmp_path / "small")
    path = tmp_path / "small" / "tokenizer.json"
    content = path.read_text()
    assert '"w7": 12' in content
    path.write_text(content.replace('"w7": 12', '"other": 12'))
    parts = ["--proxy", f"small={tmp_path / 'small'}"]
    for role in ("large", "reference"):
        parts += ["--proxy", f"{role}={family / role}"]
    found = atlantis("generate", *parts, "--prompt", "w1")
    assert (found.code, len(found.err)) == (2, 1)
    assert "different tokenizers: 2 tokens differ" in found.err[0]


def test_a_server_that_is_not_there_is_waited_for_as_long_as_asked(atlantis, data, tmp_path):
    out = tmp_path / "out.jsonl"
    asked = ("--model", "m", "--data", data, "--out", out, "--patience", 0.1)
    found = atlantis("generate", *SERVER, *asked)
    assert found.code == 1
    assert "run the same command again when the server works" in found.err[-1]
    assert not out.exists()
