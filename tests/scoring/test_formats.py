"""Every input format through the whole way to a store, against plain computations."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from atlantis import score, weigh
from atlantis.errors import AtlantisError, DataError, ModelError, WeightError
from atlantis.records import Conversation, Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [
    {"role": "user", "content": "The storm?"},
    {"role": "assistant", "content": "It caused the flood."},
    {"role": "user", "content": "The engine?"},
    {"role": "assistant", "content": "In the car."},
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(store):
    return {row["example_id"]: row for row in store.read().to_pylist()}


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


@pytest.fixture(scope="module")
def chat_model(saved_model):
    """The same weights with a chat template; the vocabulary has room for its tokens."""
    folder = saved_model("qwen2", vocab_size=330)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_logprobs(folder, ids):
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [None, *(logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)))]


def test_the_assistants_turns_of_a_chat_are_scored_and_nothing_else(chat_model, tmp_path):
    data = write_lines(tmp_path / "d.jsonl", [{"example_id": "c", "messages": TURNS}])
    found = rows_of(score(data, model=chat_model, out=tmp_path / "s", device="cpu"))["c"]
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    ids = tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]
    logprobs, expected = plain_logprobs(chat_model, ids), []
    for turn in (TURNS[1], TURNS[3]):
        said = tokenizer(turn["content"], add_special_tokens=False)["input_ids"]
        starts = [i for i in range(len(ids)) if ids[i : i + len(said)] == said]
        expected += logprobs[starts[0] : starts[0] + len(said)]
    assert found["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    assert found["num_trained_tokens"] == found["num_tokens"] + 2
    assert found["num_bytes"] == len("It caused the flood.In the car.")


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
def test_all_formats_and_files_of_the_same_rows_give_the_same_scores(model, tmp_path, container):
    prompt = [TURNS[0]]
    completion = [TURNS[1]]
    shapes = {
        "prompts": {"prompt": prompt, "completion": completion},
        "messages": {"messages": TURNS[:2]},
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": TURNS[0]["content"]},
                {"from": "gpt", "value": TURNS[1]["content"]},
            ]
        },
    }
    scores = set()
    for name, shape in shapes.items():
        path = tmp_path / f"{name}.{container}"
        row = {"example_id": "a"} | shape
        if container == "jsonl":
            write_lines(path, [row])
        elif container == "json":
            path.write_text(json.dumps([row]))
        else:
            pq.write_table(pa.Table.from_pylist([row]), path)
        store = score(path, model=model, out=tmp_path / name, device="cpu")
        scores.add(rows_of(store)["a"]["sequence_logprob"])
    assert len(scores) == 1


def test_real_demonstration_files_can_be_scored(shared_data, model, tmp_path):
    with (shared_data / "instruct" / "alpaca_6k.jsonl").open() as lines:
        rows = [row for line in lines if (row := json.loads(line))["output"].strip()][:40]
    alpaca = write_lines(tmp_path / "alpaca.jsonl", rows)
    found = score(alpaca, model=model, out=tmp_path / "a", max_length=256, device="cpu").read()
    assert set(found["status"].to_pylist()) <= {"ok", "too_long"}
    chats = shared_data / "instruct" / "sharegpt_demo.json"
    found = score(chats, model=model, out=tmp_path / "s", max_length=256, device="cpu").read()
    assert "ok" in found["status"].to_pylist()


def test_chats_read_in_other_words_are_not_compared_unless_asked(chat_model, model, tmp_path):
    rows = [{"example_id": str(i), "messages": TURNS[: 2 + 2 * (i % 2)]} for i in range(4)]
    data = write_lines(tmp_path / "d.jsonl", rows)

    def stores(**options):
        name = "-".join(map(str, options.values()))
        return {
            role: score(data, model=m, out=tmp_path / f"{role}{name}", device="cpu", **options)
            for role, m in (("reference", chat_model), ("small", model))
        }

    with pytest.raises(WeightError, match=r"differ in rendered_text.*--chat-template"):
        weigh(**stores())
    assert len(weigh(**stores(chat_template="plain")).weight) == 4
    assert len(
        weigh(**stores(template="native"), scheme={"kind": "influence", "unit": "byte"}).weight
    )


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_is_scored_by_the_same_command(architecture, tmp_path, bpe_tokenizer):
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    if architecture == "t5":
        config = T5Config(
            vocab_size=320,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=1,
            eos_token_id=0,
            pad_token_id=1,
            initializer_factor=1.0,
        )
        network = T5ForConditionalGeneration(config)
    else:
        config = BartConfig(
            vocab_size=320,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            init_std=0.3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            decoder_start_token_id=1,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=0,
            forced_eos_token_id=None,
        )
        network = BartForConditionalGeneration(config)
        with torch.no_grad():
            network.final_logits_bias += torch.randn(1, 320)
    network.save_pretrained(tmp_path / "m")
    bpe_tokenizer.save_pretrained(tmp_path / "m")
    pairs = [("The storm", " caused the flood"), ("The engine of the old car", " box"), ("A", " b")]
    examples = [Example(str(i), prompt, said) for i, (prompt, said) in enumerate(pairs)]
    found = rows_of(score(examples, model=str(tmp_path / "m"), out=tmp_path / "s", device="cpu"))
    trusted = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m", dtype=torch.float64).eval()
    for row, (prompt, said) in zip(examples, pairs, strict=True):
        source = bpe_tokenizer([prompt], return_tensors="pt")
        target = bpe_tokenizer(said)["input_ids"] + [0]
        with torch.no_grad():
            logits = trusted(
                input_ids=source["input_ids"],
                attention_mask=source["attention_mask"],
                decoder_input_ids=torch.tensor([[1, *target[:-1]]]),
            ).logits
        logprobs = logits[0].log_softmax(-1)
        expected = [logprobs[t, token].item() for t, token in enumerate(target[:-1])]
        assert found[row.example_id]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert found[row.example_id]["num_trained_tokens"] == len(target)


def test_rows_made_in_python_are_held_to_the_rules_of_files(model, tmp_path):
    good = Example("a", "The storm", " caused")
    bad = {
        "occurs twice": [good, Example("a", "The car", " box")],
        "is empty": [good, Example("b", "The car", " ")],
        "surrogate": [good, Example("b", "The \ud800", " box")],
        "no turn is learnt": [Conversation("c", ({"role": "user", "content": "x"},), ())],
        "at least one": [],
    }
    for message, rows in bad.items():
        with pytest.raises(DataError, match=message):
            score(rows, model=model, out=tmp_path / "s", device="cpu")
    with pytest.raises(DataError, match="once only"):
        score(iter([good]), model=model, out=tmp_path / "s", device="cpu")
    assert not (tmp_path / "s").exists()


def test_options_of_one_back_end_are_refused_with_another(model, tmp_path):
    rows = [Example("a", "The storm", " caused")]
    with pytest.raises(AtlantisError, match="base_url has no effect on backend transformers"):
        score(rows, model=model, out=tmp_path / "s", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(AtlantisError, match="needs base_url"):
        score(rows, model=model, out=tmp_path / "s", backend="server")
    with pytest.raises(AtlantisError, match="choose transformers, vllm, server or proxy"):
        score(rows, model=model, out=tmp_path / "s", backend="tgi")


TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\0", "\ud800", "<eos>", "<eos><eos>", "\u2028", "a" * 3000, "\U0001f600" * 9]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": TEXTS}
    ),
    max_size=4,
)
ROWS = st.one_of(
    st.builds(lambda p, c: {"prompt": p, "completion": c}, TEXTS, TEXTS),
    st.builds(lambda p, c: {"prompt": p, "completion": c}, MESSAGES, MESSAGES),
    st.builds(lambda m: {"messages": m}, MESSAGES),
    st.builds(lambda i, o: {"instruction": i, "input": "", "output": o}, TEXTS, TEXTS),
)


@settings(
    deadline=None, max_examples=10_000 if os.environ.get("ATLANTIS_HYPOTHESIS") == "long" else 25
)
@given(rows=st.lists(ROWS, min_size=1, max_size=4), cut=st.booleans())
def test_no_row_gives_a_traceback(rows, cut, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    data = write_lines(folder / "d.jsonl", rows)
    truncation = "keep_prefix" if cut else "drop"
    try:
        store = score(
            data, model=model, out=folder / "s", max_length=64, truncation=truncation, device="cpu"
        )
    except (DataError, ModelError):
        assert not (folder / "s").exists()
        return
    assert store.verify() == len(rows)
    assert store.read().num_rows == len(rows)
