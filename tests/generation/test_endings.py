"""Where a completion begins and ends: the template's end of turn, and blanks at the beginning."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from atlantis.data.rendering import chat_template
from atlantis.data.tokenization import tokenize
from atlantis.generation.transformers_generator import completion_of, stop_ids
from atlantis.records import Conversation

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def word_tokenizer(words, **options):
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<|start|>", "<|end|>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", **options)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = word_tokenizer(["▁a", "▁b", "▁user", "▁assistant", "▁the", "▁answer"])
    tokenizer.chat_template = CHATML
    return tokenizer


def test_what_the_template_puts_behind_an_answer_ends_a_completion(tokenizer):
    template = chat_template(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    # A base model's defaults name its end of text only, as the tokenizer does.
    stops = stop_ids(GenerationConfig(eos_token_id=0), tokenizer, template)
    assert stops == [0, end]
    said = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    (row,) = tokenize([Conversation("r", said, (1,))], tokenizer, max_length=99, template=template)
    taught = [row.input_ids[i] for i, label in enumerate(row.labels) if label != -100]
    assert taught[-1] in stops
    new = [*tokenizer("the answer")["input_ids"], end, *tokenizer("a b")["input_ids"]]
    completion = completion_of([], new, stops, tokenizer)
    assert (completion.finish_reason, completion.num_tokens) == ("stop", 3)
    assert completion.text.strip() == "the answer"


def test_without_a_template_the_end_of_a_sequence_ends_it():
    plain = word_tokenizer(["▁a"])
    assert stop_ids(GenerationConfig(eos_token_id=None), plain, chat_template(plain)) == [0]


def test_a_completion_keeps_the_blank_that_a_tokenizer_leaves_out_at_a_beginning(tokenizer):
    new = tokenizer("the answer")["input_ids"]
    assert tokenizer.decode(new) == "the answer"
    prompt = tokenizer("a b")["input_ids"]
    completion = completion_of(prompt, new, [0], tokenizer)
    assert completion.text == " the answer"
    assert tokenizer("a b" + completion.text)["input_ids"] == prompt + new
