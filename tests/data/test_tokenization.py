"""Text to ids and the boundary, against TRL's own preparation and the plain definition."""

import json
import warnings

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from atlantis.data.rendering import digest_rows
from atlantis.data.tokenization import common_prefix_length, tokenize
from atlantis.errors import ModelError
from atlantis.records import Example

ENDS = ["", " ", "\n", "\n\n", ":", " a", "'", "(", "é", "\U0001f600", "e1", " th", " Cau"]
COMPLETIONS = [
    "Cause-Effect(e1,e2)",
    " Other",
    "s caused it",
    "\n\nNo",
    " ",
    "é",
    "2)",
    "e flood",
    "se-Effect",
]


def rows_of(pairs):
    return [Example(str(i), prompt, completion) for i, (prompt, completion) in enumerate(pairs)]


def prepared_by_trl(model, tokenizer, rows, folder):
    """Ids and labels as stock TRL makes them from prompt and completion."""
    trainer = SFTTrainer(
        model,
        SFTConfig(
            output_dir=str(folder),
            max_length=None,
            bf16=False,
            use_cpu=True,
            report_to="none",
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": row.prompt, "completion": row.completion} for row in rows]
        ),
        processing_class=tokenizer,
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def prepared_by_us(tokenizer, rows):
    result = []
    for row in tokenize(rows, tokenizer, max_length=10_000):
        ids, boundary = list(row.input_ids), row.num_prompt_tokens
        result.append((ids, [-100] * boundary + ids[boundary:]))
    return result


def test_ids_and_boundary_equal_trl_on_prompts_that_merge_with_the_completion(
    tiny_model, bpe_tokenizer, tmp_path
):
    rows = rows_of((f"The storm caused the flood{end}", c) for end in ENDS for c in COMPLETIONS)
    ours = prepared_by_us(bpe_tokenizer, rows)
    assert ours == prepared_by_trl(tiny_model("qwen2"), bpe_tokenizer, rows, tmp_path)
    prompts = bpe_tokenizer([row.prompt for row in rows])["input_ids"]
    merged = sum(
        labels.index(next(x for x in labels if x != -100)) < len(prompt)
        for (_, labels), prompt in zip(ours, prompts, strict=True)
    )
    assert merged >= 3  # the boundary moved into the prompt: the case is really there


def test_ids_and_boundary_equal_trl_on_real_text(tiny_model, shared_models, shared_data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tiny-a" / "large")
    with (shared_data / "instruct" / "alpaca_6k.jsonl").open() as lines:
        alpaca = [json.loads(line) for line, _ in zip(lines, range(80), strict=False)]
    rows = rows_of(
        (f"{row['instruction']}\n{row['input']}{end}", row["output"] or "nothing")
        for row, end in zip(alpaca, ["\n", "\n ", "", ": "] * 20, strict=True)
    )
    expected = prepared_by_trl(
        tiny_model("qwen2", vocab_size=len(tokenizer)), tokenizer, rows, tmp_path
    )
    assert prepared_by_us(tokenizer, rows) == expected


def test_a_completion_that_ends_its_own_turn_gets_no_second_end(
    tiny_model, bpe_tokenizer, tmp_path
):
    # Rows rendered from a chat template carry the end-of-turn token already; TRL adds none then.
    rows = rows_of([("Question:", " Other<eos>"), ("Question:", " Other")])
    expected = prepared_by_trl(tiny_model("qwen2"), bpe_tokenizer, rows, tmp_path)
    assert prepared_by_us(bpe_tokenizer, rows) == expected


def test_ids_are_those_of_prompt_completion_and_one_end_of_turn(bpe_tokenizer):
    (row,) = tokenize(rows_of([("The storm", " caused it")]), bpe_tokenizer, max_length=99)
    assert row.status == "ok"
    assert bpe_tokenizer.decode(row.input_ids) == "The storm caused it<eos>"
    assert bpe_tokenizer.decode(row.input_ids[: row.num_prompt_tokens]) == "The storm"
    assert row.input_ids.count(bpe_tokenizer.eos_token_id) == 1
    assert row.num_completion_tokens == len(row.input_ids) - row.num_prompt_tokens - 1


def test_bytes_are_those_of_the_completion_text(bpe_tokenizer):
    texts = [" ab", " é", " \U0001f600"]
    found = tokenize(rows_of([("A", text) for text in texts]), bpe_tokenizer, max_length=99)
    assert [row.num_bytes for row in found] == [3, 3, 5]


def test_ids_do_not_depend_on_the_other_rows(bpe_tokenizer):
    rows = rows_of(
        [("A", " box"), ("The storm caused the flood in the old town", " Other"), ("", "")]
    )
    together = tokenize(rows, bpe_tokenizer, max_length=99)
    alone = [tokenize([row], bpe_tokenizer, max_length=99)[0] for row in rows]
    assert together == alone


def test_a_row_of_exactly_the_limit_is_kept_and_one_longer_is_too_long(bpe_tokenizer):
    rows = rows_of([("The storm", " caused the flood")])
    length = len(tokenize(rows, bpe_tokenizer, max_length=99)[0].input_ids)
    (kept,) = tokenize(rows, bpe_tokenizer, max_length=length)
    (left_out,) = tokenize(rows, bpe_tokenizer, max_length=length - 1)
    assert kept.status == "ok"
    assert left_out.status == "too_long"
    assert len(left_out.input_ids) == length  # never cut


@pytest.mark.parametrize(("prompt", "completion"), [("The storm", ""), ("", " caused"), ("", "")])
def test_a_row_without_prompt_or_completion_tokens_is_empty(bpe_tokenizer, prompt, completion):
    (row,) = tokenize(rows_of([(prompt, completion)]), bpe_tokenizer, max_length=99)
    assert row.status == "empty"


def test_no_rows_give_no_rows(bpe_tokenizer):
    assert tokenize([], bpe_tokenizer, max_length=99) == []


def test_long_rows_raise_no_warning(bpe_tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(rows_of([("A " * 4000, " b")]), bpe_tokenizer, max_length=10)


def test_a_tokenizer_without_an_end_of_turn_is_refused(bpe_tokenizer, tmp_path):
    bpe_tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no eos_token"):
        tokenize(rows_of([("A", " b")]), tokenizer, max_length=99)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_common_prefix_length_counts_equal_leading_ids(first, second, length):
    assert common_prefix_length(first, second) == length
    assert common_prefix_length(second, first) == length


def digests(rows):
    found = digest_rows(rows)
    return found.rendered_text, found.source


def test_the_digest_tells_apart_what_plain_joining_would_not():
    rows = [Example("a", "bc", "d"), Example("ab", "c", "d"), Example("a", "b", "cd")]
    for kind in (0, 1):
        assert len({digests([row])[kind] for row in rows}) == 3
    assert digests(rows) != digests(rows[::-1])


def test_the_digest_sees_what_is_rendered_and_nothing_else():
    row = Example("a", "p", "c", label="x", gold_label="y", text="t")
    assert digests([row]) == digests([Example("a", "p", "c")])
    digests([Example("a", "\ud800", "c")])  # a lone surrogate has a digest too
