"""Chats to text and to token masks, against the tokenizers' own chat templates and TRL's masks."""

import copy

import pytest

from atlantis.data.rendering import PlainTemplate, chat_template, digest_rows
from atlantis.data.tokenization import tokenize, tokenize_pairs
from atlantis.errors import ConfigError, DataError
from atlantis.records import Conversation, Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = Conversation(
    "c",
    (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "The storm?"},
        {"role": "assistant", "content": "It caused the flood. "},
        {"role": "user", "content": "The engine?"},
        {"role": "assistant", "content": "In the car."},
        {"role": "user", "content": "Thanks."},
    ),
    (2, 4),
)


@pytest.fixture
def chat_tokenizer(bpe_tokenizer):
    bpe_tokenizer = copy.deepcopy(bpe_tokenizer)
    bpe_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    bpe_tokenizer.chat_template = CHATML
    return bpe_tokenizer


def said(tokenizer, row, *, end_of_turn):
    """What is scored, decoded turn by turn."""
    last = "end" if end_of_turn else "stop"
    return [tokenizer.decode(row.input_ids[turn.start : getattr(turn, last)]) for turn in row.turns]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_learnt_turns_are_scored_with_their_end_of_turn_apart(chat_tokenizer, template):
    chat_tokenizer.chat_template = template
    (row,) = tokenize([CHAT], chat_tokenizer, max_length=999)
    assert said(chat_tokenizer, row, end_of_turn=False) == ["It caused the flood. ", "In the car."]
    assert said(chat_tokenizer, row, end_of_turn=True) == [
        "It caused the flood. <|im_end|>",
        "In the car.<|im_end|>",
    ]
    assert row.num_bytes == len("It caused the flood. In the car.")
    assert row.num_completion_tokens == len(row.scored_positions(end_of_turn=False))


def test_ids_are_those_of_the_tokenizers_own_chat_template_up_to_the_last_learnt_turn(
    chat_tokenizer,
):
    (row,) = tokenize([CHAT], chat_tokenizer, max_length=999)
    whole = chat_tokenizer.apply_chat_template(
        [dict(m) for m in CHAT.messages[:5]], return_dict=True
    )["input_ids"]
    assert list(row.input_ids) == whole[: len(row.input_ids)]
    assert chat_tokenizer.decode(whole[len(row.input_ids) :]) == "\n"


def test_markers_give_the_mask_that_transformers_gives(chat_tokenizer):
    chat_tokenizer.chat_template = MARKED
    (row,) = tokenize([CHAT], chat_tokenizer, max_length=999)
    found = chat_tokenizer.apply_chat_template(
        [dict(m) for m in CHAT.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        token if learnt else -100
        for token, learnt in zip(found["input_ids"], found["assistant_masks"], strict=True)
    ]
    assert row.labels == labels[: len(row.labels)]
    assert set(labels[len(row.labels) :]) == {-100}


def test_a_turn_that_is_not_learnt_only_conditions(chat_tokenizer):
    chat = Conversation("c", CHAT.messages, (4,))
    (row,) = tokenize([chat], chat_tokenizer, max_length=999)
    assert said(chat_tokenizer, row, end_of_turn=False) == ["In the car."]


def test_a_base_model_gets_the_plain_template_with_an_end_after_every_learnt_turn(bpe_tokenizer):
    assert bpe_tokenizer.chat_template is None
    (row,) = tokenize([CHAT], bpe_tokenizer, max_length=999)
    assert bpe_tokenizer.decode(row.input_ids) == (
        "Be short.\n\nUser: The storm?\n\nAssistant: It caused the flood. <eos>\n\n"
        "User: The engine?\n\nAssistant: In the car.<eos>"
    )
    assert said(bpe_tokenizer, row, end_of_turn=False) == [" It caused the flood. ", " In the car."]
    assert said(bpe_tokenizer, row, end_of_turn=True) == [
        " It caused the flood. <eos>",
        " In the car.<eos>",
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last or m.role != 'assistant' %}"
        "{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(DataError, match=r"example 'c'.*turn 3 reads differently"):
        tokenize([CHAT], chat_tokenizer, max_length=999)


def test_a_template_that_refuses_a_role_names_the_example(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(DataError, match=r"example 'c': .*no system turns"):
        tokenize([CHAT], chat_tokenizer, max_length=999)


def test_a_template_can_be_chosen_by_file(chat_tokenizer, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(MARKED)
    assert chat_template(chat_tokenizer, str(file)).source == MARKED
    assert chat_template(chat_tokenizer, "plain").source == "plain"
    with pytest.raises(ConfigError, match="no such file"):
        chat_template(chat_tokenizer, str(tmp_path / "none.jinja"))


def test_the_digest_tells_templates_and_masks_apart(chat_tokenizer):
    native = chat_template(chat_tokenizer)
    fewer = Conversation("c", CHAT.messages, (4,))
    read = [(CHAT, native), (CHAT, PlainTemplate()), (fewer, native)]
    digests = [digest_rows([row], template) for row, template in read]
    assert len({digest.rendered_text for digest in digests}) == 3
    assert digests[0].source == digests[1].source != digests[2].source


@pytest.mark.parametrize("max_length", range(12, 40))
def test_keep_prefix_cuts_the_same_row_at_the_limit(chat_tokenizer, max_length):
    (whole,) = tokenize([CHAT], chat_tokenizer, max_length=999)
    (row,) = tokenize([CHAT], chat_tokenizer, max_length=max_length, truncation="keep_prefix")
    expected = [p for p in whole.scored_positions(end_of_turn=True) if p < max_length]
    if len(whole.input_ids) <= max_length:
        assert row == whole
    elif whole.turns[0].start >= max_length:
        assert row.status == "too_long"
    else:
        assert row.status == "ok"
        assert row.is_truncated
        assert row.input_ids == whole.input_ids[:max_length]
        assert list(row.scored_positions(end_of_turn=True)) == expected
        assert row.num_bytes == len("".join(said(chat_tokenizer, row, end_of_turn=False)))
        assert row.labels == whole.labels[:max_length]


def test_an_encoder_decoder_reads_the_prompt_and_predicts_the_completion(bpe_tokenizer):
    rows = [Example("a", "The storm", " caused it"), Example("b", "The car", " in town<eos>")]
    first, second = tokenize_pairs(rows, bpe_tokenizer, start_token=7, max_length=99)
    assert bpe_tokenizer.decode(first.encoder_ids) == "The storm"
    assert first.input_ids[0] == 7
    assert bpe_tokenizer.decode(first.input_ids[1:]) == " caused it<eos>"
    assert said(bpe_tokenizer, first, end_of_turn=False) == [" caused it"]
    assert said(bpe_tokenizer, second, end_of_turn=True) == [" in town<eos>"]
    (cut,) = tokenize_pairs(
        rows[:1],
        bpe_tokenizer,
        start_token=7,
        max_length=first.num_tokens - 2,
        truncation="keep_prefix",
    )
    assert cut.input_ids == first.input_ids[:-2]
    with pytest.raises(DataError, match="one prompt and one completion"):
        tokenize_pairs([CHAT], bpe_tokenizer, start_token=7, max_length=99)
