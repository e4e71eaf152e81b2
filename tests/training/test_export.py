"""Files for other trainers: what each reads, and that training on one is training on the rows."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlantis.data.rendering import JinjaTemplate
from atlantis.data.sources import open_source
from atlantis.errors import DataError
from atlantis.records import Conversation, Example
from atlantis.training.export import (
    LlamaFactoryLayout,
    MsSwiftLayout,
    Resampled,
    TrlLayout,
    export,
)
from atlantis.training.rows import training_rows
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TEXT = Example("text", "the flood", " in the town", gold_label="secret")
CHAT = Conversation(
    "chat",
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2 é?"},
        {"role": "assistant", "content": "Wait."},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "So:", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "thanks"},
    ),
    learnt=(4, 6),
    tools=(TOOL,),
)
WEIGHTS = {"text": 0.25, "chat": 2.5}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exported(layout, out, rows=(TEXT, CHAT), weights=WEIGHTS):
    return export(rows, weights, out / "out.jsonl", layout=layout), lines_of(out / "out.jsonl")


def test_ms_swift_gets_a_loss_scale_on_what_the_assistant_says(tmp_path):
    done, (text, chat) = exported(MsSwiftLayout(), tmp_path)
    assert text == {
        "example_id": "text",
        "messages": [
            {"role": "user", "content": "the flood"},
            {"role": "assistant", "content": " in the town", "loss_scale": 0.25},
        ],
    }
    call = '{"name": "add", "arguments": {"a": 1, "b": [2]}}'
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2 é?"},
        {"role": "assistant", "content": "Wait.", "loss_scale": 0.0},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "So:", "loss_scale": 2.5},
        {"role": "tool_call", "content": call, "loss_scale": 2.5},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3", "loss_scale": 2.5},
    ]
    assert json.loads(chat["tools"]) == [TOOL]
    assert "--is_binary_loss_scale false" in done.notes[0]
    assert "plain text" in done.notes[1]


def test_llama_factory_gets_a_loss_weight_on_every_message(tmp_path):
    done, (text, chat) = exported(LlamaFactoryLayout(), tmp_path)
    assert text["messages"] == [
        {
            "role": "user",
            "content": [{"type": "text", "value": "the flood"}],
            "loss_weight": 0.0,
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "value": " in the town"}],
            "loss_weight": 0.25,
        },
    ]
    assert [message["loss_weight"] for message in chat["messages"]] == [0, 0, 0, 0, 2.5, 0, 2.5]
    said, called = chat["messages"][4]["content"]
    assert said == {"type": "text", "value": "So:"}
    assert called["type"] == "tool_call"
    assert json.loads(called["value"]) == {"name": "add", "arguments": {"a": 1, "b": [2]}}
    assert json.loads(chat["tools"]) == [TOOL]
    assert "cancel" in done.notes[0]


def test_a_turn_of_calls_alone_has_no_empty_message(tmp_path):
    silent = {"role": "assistant", "tool_calls": [CALL]}
    row = Conversation("chat", ({"role": "user", "content": "1 + 2?"}, silent), learnt=(1,))
    _, (swift,) = exported(MsSwiftLayout(), tmp_path, [row])
    assert [message["role"] for message in swift["messages"]] == ["user", "tool_call"]
    _, (factory,) = exported(LlamaFactoryLayout(), tmp_path, [row])
    assert [part["type"] for part in factory["messages"][1]["content"]] == ["tool_call"]


def test_trl_gets_a_prompt_a_completion_and_a_weight(tmp_path):
    done, (text, chat) = exported(TrlLayout(), tmp_path)
    assert text == {
        "example_id": "text",
        "prompt": "the flood",
        "completion": " in the town",
        "weight": 0.25,
    }
    assert chat["prompt"] == list(CHAT.messages[:4])
    assert chat["completion"] == list(CHAT.messages[4:7])
    assert chat["weight"] == 2.5
    assert "WeightedSFTTrainer" in done.notes[0]
    assert "assistant_only_loss=True" in done.notes[1]


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        (TrlLayout(), ("assistant", "user", "assistant", (0, 2)), "begins with a turn to learn"),
        (TrlLayout(), ("user", "assistant", "assistant", "assistant", (1, 3)), "cannot say"),
        (MsSwiftLayout(), ("developer", "user", "assistant", (2,)), "no role developer"),
        (LlamaFactoryLayout(), ("developer", "user", "assistant", (2,)), "no role developer"),
    ],
)
def test_a_chat_that_a_layout_cannot_say_is_refused_by_id(tmp_path, layout, row, message):
    *roles, learnt = row
    messages = tuple({"role": role, "content": "x"} for role in roles)
    with pytest.raises(DataError, match=f"example 'chat'.*{message}"):
        exported(layout, tmp_path, [Conversation("chat", messages, learnt)])
    assert not (tmp_path / "out.jsonl").exists()


def test_what_a_trainer_would_drop_from_a_message_is_refused(tmp_path):
    thought = {"role": "assistant", "content": "3", "reasoning_content": "1 and 2"}
    row = Conversation("chat", ({"role": "user", "content": "1 + 2?"}, thought), learnt=(1,))
    with pytest.raises(DataError, match="ms-swift knows no field 'reasoning_content'"):
        exported(MsSwiftLayout(), tmp_path, [row])
    _, (line,) = exported(LlamaFactoryLayout(), tmp_path, [row])
    assert line["messages"][1]["content"][0] == {"type": "reasoning", "value": "1 and 2"}


def test_rows_of_weight_zero_are_left_out_and_counted(tmp_path):
    done, lines = exported(TrlLayout(), tmp_path, weights={"text": 1.0, "chat": 0.0})
    assert [line["example_id"] for line in lines] == ["text"]
    assert (done.num_rows, done.left_out) == (1, {"zero_weight": 1})
    with pytest.raises(DataError, match="over zero"):
        exported(TrlLayout(), tmp_path, weights={"text": 0.0, "chat": 0.0})
    with pytest.raises(DataError, match="'chat' has no weight"):
        exported(TrlLayout(), tmp_path, weights={"text": 1.0})


def many(num_rows, seed=0):
    draw = np.random.default_rng(seed)
    rows = [Example(f"r{index}", f"p{index}", f"c{index}") for index in range(num_rows)]
    return rows, {row.example_id: float(draw.lognormal(sigma=1.5)) for row in rows}


def copies(lines, rows):
    counts = dict.fromkeys((row.prompt for row in rows), 0)
    for line in lines:
        counts[line["prompt"]] += 1
    return np.array(list(counts.values()))


def test_every_row_is_drawn_as_often_as_its_weight_says(tmp_path):
    rows, weights = many(200)
    done, lines = exported(Resampled(num_rows=500, seed=3), tmp_path, rows, weights)
    expected = np.array(list(weights.values())) / sum(weights.values()) * 500
    found = copies(lines, rows)
    assert np.all((found >= np.floor(expected)) & (found <= np.ceil(expected)))
    assert (done.num_rows, done.num_distinct) == (500, np.count_nonzero(found))
    # Unbiased: over many seeds the mean number of copies is the expected one.
    means = np.mean(
        [
            copies(Resampled(num_rows=500, seed=seed).lay_out(rows, weights), rows)
            for seed in range(400)
        ],
        axis=0,
    )
    # The standard error of a mean of 400 numbers of copies is at most 0.5 / 20.
    assert np.abs(means - expected).max() < 5 * 0.025


def test_copies_have_ids_of_their_own_even_next_to_such_ids(tmp_path):
    rows = [Example("a", "p", "c"), Example("a#2", "p", "d")]
    done, lines = exported(Resampled(num_rows=8), tmp_path, rows, {"a": 3.0, "a#2": 1.0})
    names = [line["example_id"] for line in lines]
    assert names == ["a", "a#3", "a#4", "a#5", "a#6", "a#7", "a#2", "a#2#2"]
    assert done.num_distinct == 2
    list(open_source(str(tmp_path / "out.jsonl")))  # refuses ids that occur twice


def test_equal_weights_give_every_row_once_and_a_seed_gives_the_same_bytes(tmp_path):
    rows, weights = many(37)
    _, lines = exported(Resampled(), tmp_path, rows, dict.fromkeys(weights, 0.3))
    assert [line["example_id"] for line in lines] == [row.example_id for row in rows]
    exported(Resampled(seed=1), tmp_path, rows, weights)
    first = (tmp_path / "out.jsonl").read_bytes()
    exported(Resampled(seed=1), tmp_path, rows, weights)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    exported(Resampled(seed=2), tmp_path, rows, weights)
    assert (tmp_path / "out.jsonl").read_bytes() != first


def test_one_huge_weight_takes_nearly_every_draw(tmp_path):
    rows, weights = many(5)
    done, _ = exported(Resampled(num_rows=9), tmp_path, rows, weights | {"r2": 1e300})
    assert done.num_distinct == 1


def test_drawn_chats_read_back_as_the_chats_they_were(tmp_path):
    exported(Resampled(), tmp_path, [CHAT])
    assert list(open_source(str(tmp_path / "out.jsonl"))) == [CHAT]


def test_exported_chats_read_back_with_the_same_turns_learnt(tmp_path):
    exported(TrlLayout(), tmp_path, [CHAT])
    (back,) = open_source(str(tmp_path / "out.jsonl"))
    assert (back.messages, back.learnt) == (CHAT.messages[:7], CHAT.learnt)


TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def ragged_texts(num_rows):
    draw = random.Random(5)
    words = ["storm", "flood", "the box", "of letters", "Cause-Effect(e1,e2)", "car"]
    for index in range(num_rows):
        prompt = " ".join(draw.choices(words, k=draw.randrange(1, 8)))
        completion = " ".join(draw.choices(words, k=draw.randrange(1, 6)))
        # Some completions begin inside a word, and one ends its turn itself.
        space, end = ("", "<eos>" if index == 4 else "") if index % 2 else (" ", "")
        yield Example(f"r{index}", prompt, space + completion + end)


def ragged_chats(num_rows):
    draw = random.Random(6)
    words = ["storm", "flood", "the box", "of letters", "car"]
    for index in range(num_rows):
        roles = ["user", "assistant"] * draw.randrange(1, 4)
        messages = tuple(
            {"role": role, "content": " ".join(draw.choices(words, k=draw.randrange(1, 5)))}
            for role in roles
        )
        first = draw.randrange(1, len(roles), 2)
        yield Conversation(f"r{index}", messages, tuple(range(first, len(roles), 2)))


def trainer_on(dataset, model, tokenizer, folder, **changes):
    arguments = WeightedSFTConfig(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        seed=3,
        **changes,
    )
    return WeightedSFTTrainer(
        copy.deepcopy(model), arguments, train_dataset=dataset, processing_class=tokenizer
    )


@pytest.mark.parametrize("kind", ["texts", "chats"])
def test_training_on_an_exported_file_is_training_on_the_rows(kind, saved_model, tmp_path):
    folder = saved_model("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE if kind == "chats" else None
    rows = list(ragged_texts(24) if kind == "texts" else ragged_chats(24))
    weights = {row.example_id: float(index % 5) / 2 for index, row in enumerate(rows)}
    template = JinjaTemplate(TEMPLATE, tokenizer.special_tokens_map) if kind == "chats" else None
    ours, left_out = training_rows(rows, weights, tokenizer, max_length=256, template=template)
    done, lines = exported(TrlLayout(), tmp_path, rows, weights)
    assert done.left_out == left_out == {"zero_weight": 5}

    model = AutoModelForCausalLM.from_pretrained(folder)
    chats = {"assistant_only_loss": True} if kind == "chats" else {}
    ours = trainer_on(ours, model, tokenizer, tmp_path / "ours")
    theirs = trainer_on(Dataset.from_list(lines), model, tokenizer, tmp_path / "theirs", **chats)
    columns = ("input_ids", "labels", "token_weights", "token_counts")
    assert set(columns) <= set(ours.train_dataset.column_names)
    for column in columns:
        assert ours.train_dataset[column][:] == theirs.train_dataset[column][:], column
    for trainer in (ours, theirs):
        trainer.train()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)
