"""The proxy-tuned model against a loop without any cache that calls the three models themselves."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TextStreamer

import atlantis
from atlantis.data.tokenization import tokenize
from atlantis.errors import ConfigError, ModelError
from atlantis.models.head import completion_logprobs, target_logprobs
from atlantis.models.proxy import ProxyTunedLM
from atlantis.records import Example
from atlantis.scoring.transformers_scorer import TransformersScorer

ALPHA = 1.3
NEW = 12
PROMPT = torch.tensor([[7, 19, 33, 102, 250, 8, 91]])
PLAIN = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 1}
FAMILIES = {
    "qwen2": ("qwen2", "qwen2"),
    "gemma2": ("gemma2", "gemma2"),  # soft caps, and caches with a sliding window
    "gpt2": ("gpt2", "gpt2"),  # learnt positions, which left padding would shift
    "mixed": ("llama", "qwen2"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, tiny_model):
    """Three models; the large one has a wider vocabulary, as Qwen2's has."""
    large, small = FAMILIES[request.param]
    return (
        tiny_model(large, seed=1, vocab_size=352),
        tiny_model(small, seed=2),
        tiny_model(small, seed=3),
    )


@pytest.fixture(scope="module")
def proxy(parts):
    return ProxyTunedLM(*parts, alpha=ALPHA)


@pytest.fixture(scope="module")
def qwen(tiny_model):
    return [tiny_model("qwen2", seed=seed) for seed in (1, 2, 3)]


@torch.inference_mode()
def naive_logits(parts, ids, alpha=ALPHA):
    """Combined float32 logits of every position of one row, from the definition."""
    large, small, reference = (model(input_ids=ids).logits[..., :320].float() for model in parts)
    return large + alpha * (reference - small)


def naive_loop(parts, ids, *, choose, steps=NEW, alpha=ALPHA):
    for _ in range(steps):
        chosen = choose(naive_logits(parts, ids, alpha)[:, -1])
        ids = torch.cat([ids, chosen[:, None]], 1)
    return ids


def greedy(logits):
    return logits.argmax(-1)


def naive_beams(parts, ids, *, width, steps):
    """Beam search without end tokens: the best ``width`` continuations by total log-probability."""
    beams = [(0.0, ids)]
    for _ in range(steps):
        grown = []
        for total, row in beams:
            logprobs = naive_logits(parts, row)[0, -1].log_softmax(-1)
            for value, token in zip(*logprobs.topk(2 * width), strict=True):
                grown.append((total + float(value), torch.cat([row, token[None, None]], 1)))
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return beams


def padded_left(rows):
    longest = max(row.shape[1] for row in rows)
    ids = torch.ones(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - row.shape[1] :] = row
        mask[index, longest - row.shape[1] :] = 1
    return ids, mask


def test_the_logits_are_the_formula(parts, proxy):
    found = proxy(input_ids=PROMPT).logits
    assert found.dtype == torch.float32
    assert found.shape == (1, 7, 320)
    torch.testing.assert_close(found, naive_logits(parts, PROMPT), atol=1e-5, rtol=1e-5)


def test_greedy_is_the_uncached_loop(parts, proxy):
    assert torch.equal(proxy.generate(PROMPT, **PLAIN), naive_loop(parts, PROMPT, choose=greedy))


def test_greedy_without_a_cache_is_greedy_with_one(proxy):
    without = proxy.generate(PROMPT, **PLAIN, use_cache=False)
    assert torch.equal(without, proxy.generate(PROMPT, **PLAIN))


def test_sampling_is_the_uncached_loop_with_the_same_seed(parts, proxy):
    sampling = PLAIN | {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(11)
    found = proxy.generate(PROMPT, **sampling)
    torch.manual_seed(11)
    expected = naive_loop(
        parts,
        PROMPT,
        choose=lambda logits: torch.multinomial((logits / 0.7).softmax(-1), 1).squeeze(1),
    )
    assert torch.equal(found, expected)


def test_temperature_and_nucleus_act_on_the_combined_logits(parts, proxy):
    sampling = PLAIN | {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 0.5}

    def choose(logits):
        probabilities = (logits / 1.5).softmax(-1)
        ordered, order = probabilities.sort(descending=True)
        kept = ordered.cumsum(-1) - ordered < 0.5
        allowed = torch.zeros_like(kept).scatter(1, order, kept)
        kept_only = torch.where(allowed, probabilities, 0)
        return torch.multinomial(kept_only / kept_only.sum(), 1).squeeze(1)

    torch.manual_seed(4)
    found = proxy.generate(PROMPT, **sampling)
    torch.manual_seed(4)
    assert torch.equal(found, naive_loop(parts, PROMPT, choose=choose))


def test_several_samples_of_a_prompt_are_the_uncached_loop_on_its_copies(parts, proxy):
    sampling = PLAIN | {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(5)
    found = proxy.generate(PROMPT, **sampling, num_return_sequences=3)
    torch.manual_seed(5)
    expected = naive_loop(
        parts,
        PROMPT.expand(3, -1),
        choose=lambda logits: torch.multinomial(logits.softmax(-1), 1).squeeze(1),
    )
    assert len(set(map(tuple, found.tolist()))) == 3
    assert torch.equal(found, expected)


def test_beams_are_those_of_a_plain_beam_search(parts, proxy):
    steps = 6
    settings = PLAIN | {"max_new_tokens": steps, "num_beams": 3, "num_return_sequences": 3}
    found = proxy.generate(PROMPT, **settings, return_dict_in_generate=True, output_scores=True)
    expected = naive_beams(parts, PROMPT, width=3, steps=steps)
    assert found.sequences.tolist() == [row[0].tolist() for _, row in expected]
    # Scores are means over the new tokens.
    totals = torch.tensor([total for total, _ in expected])
    torch.testing.assert_close(found.sequences_scores * steps, totals, atol=1e-4, rtol=1e-5)


def test_a_left_padded_batch_gives_each_row_what_it_gives_alone(parts, proxy):
    rows = [PROMPT, PROMPT[:, :2], torch.tensor([[300, 12, 44, 9]])]
    ids, mask = padded_left(rows)
    found = proxy.generate(ids, attention_mask=mask, **PLAIN)[:, ids.shape[1] :]
    for row, new in zip(rows, found, strict=True):
        alone = naive_loop(parts, row, choose=greedy)[0, row.shape[1] :]
        assert torch.equal(new, alone)


def test_beams_of_a_left_padded_batch_are_those_of_each_row_alone(parts, proxy):
    rows = [PROMPT[:, :3], PROMPT]
    ids, mask = padded_left(rows)
    settings = PLAIN | {"num_beams": 2, "max_new_tokens": 5}
    found = proxy.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    for row, new in zip(rows, found, strict=True):
        best = naive_beams(parts, row, width=2, steps=5)[0][1]
        assert torch.equal(new, best[0, row.shape[1] :])


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.9, "top_k": 20}]
)
def test_alpha_zero_is_the_large_model(tiny_model, settings):
    large, small, reference = (tiny_model("qwen2", seed=seed) for seed in (1, 2, 3))
    proxy = ProxyTunedLM(large, small, reference, alpha=0.0)
    texts = []
    for model in (proxy, large):
        torch.manual_seed(3)
        texts.append(model.generate(PROMPT, **PLAIN | settings))
    assert torch.equal(*texts)
    assert torch.equal(proxy(input_ids=PROMPT).logits, large(input_ids=PROMPT).logits)


def test_a_reference_that_is_the_small_model_leaves_the_large_one(tiny_model):
    large, small = tiny_model("llama", seed=1), tiny_model("gpt2", seed=2)
    proxy = ProxyTunedLM(large, small, small, alpha=2.5)
    assert torch.equal(proxy.generate(PROMPT, **PLAIN), large.generate(PROMPT, **PLAIN))
    assert torch.equal(proxy(input_ids=PROMPT).logits, large(input_ids=PROMPT).logits)


def test_a_large_model_that_is_the_small_one_becomes_the_reference(qwen):
    _, small, reference = qwen
    proxy = ProxyTunedLM(small, small, reference)
    assert torch.equal(proxy.generate(PROMPT, **PLAIN), reference.generate(PROMPT, **PLAIN))


def test_alpha_can_be_swept_on_one_model(qwen):
    proxy = ProxyTunedLM(*qwen)
    for alpha in (0.0, 0.5, 2.0):
        proxy.alpha = alpha
        expected = naive_loop(qwen, PROMPT, choose=greedy, alpha=alpha)
        assert torch.equal(proxy.generate(PROMPT, **PLAIN), expected)


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_refused(qwen, alpha):
    with pytest.raises(ConfigError, match="finite"):
        ProxyTunedLM(*qwen, alpha=alpha)


@pytest.mark.parametrize("widest", [0, 1, 2])
def test_any_of_the_three_may_have_the_widest_vocabulary(tiny_model, widest):
    sizes = [320, 320, 320]
    sizes[widest] = 384
    parts = [tiny_model("qwen2", seed=i, vocab_size=size) for i, size in enumerate(sizes)]
    proxy = ProxyTunedLM(*parts, alpha=ALPHA)
    assert proxy.config.vocab_size == 320
    assert torch.equal(proxy.generate(PROMPT, **PLAIN), naive_loop(parts, PROMPT, choose=greedy))


def test_logits_of_half_precision_models_are_combined_in_float32(tiny_model):
    parts = [tiny_model("qwen2", seed=seed).bfloat16() for seed in (1, 2, 3)]
    found = ProxyTunedLM(*parts, alpha=ALPHA)(input_ids=PROMPT).logits
    expected = naive_logits(parts, PROMPT)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert not torch.equal(found, found.bfloat16().float())


def test_generation_ends_with_the_end_token_of_any_of_the_three(tiny_model):
    parts = [tiny_model("qwen2", seed=seed) for seed in (1, 2, 3)]
    for model, end in zip(parts, (0, 5, [0, 9]), strict=True):
        model.generation_config.eos_token_id = end
    proxy = ProxyTunedLM(*parts)
    assert proxy.generation_config.eos_token_id == [0, 5, 9]
    free = proxy.generate(PROMPT, **PLAIN)[0, 7:].tolist()
    parts[2].generation_config.eos_token_id = free[3]
    again = ProxyTunedLM(*parts)
    found = again.generate(PROMPT, do_sample=False, max_new_tokens=NEW)[0, 7:].tolist()
    assert found == free[: free.index(free[3]) + 1]


def test_prompt_lookup_which_takes_tokens_back_is_greedy(qwen):
    # Candidates that fail are cropped out of the caches of all three.
    proxy = ProxyTunedLM(*qwen)
    prompt = torch.tensor([[7, 19, 33, 7, 19, 33, 7, 19]])
    guessed = proxy.generate(prompt, **PLAIN, prompt_lookup_num_tokens=3)
    assert torch.equal(guessed, proxy.generate(prompt, **PLAIN))


def test_generation_goes_on_from_a_returned_cache(qwen):
    proxy = ProxyTunedLM(*qwen)
    first = proxy.generate(PROMPT, **PLAIN | {"max_new_tokens": 4}, return_dict_in_generate=True)
    rest = PLAIN | {"max_new_tokens": NEW - 4}
    second = proxy.generate(first.sequences, past_key_values=first.past_key_values, **rest)
    assert torch.equal(second, proxy.generate(PROMPT, **PLAIN))


def test_a_long_prompt_can_be_read_in_chunks(qwen):
    proxy = ProxyTunedLM(*qwen)
    assert torch.equal(
        proxy.generate(PROMPT, **PLAIN, prefill_chunk_size=3), proxy.generate(PROMPT, **PLAIN)
    )


def test_text_is_streamed(qwen, bpe_tokenizer, capsys):
    proxy = ProxyTunedLM(*qwen)
    streamer = TextStreamer(bpe_tokenizer, skip_prompt=True)
    ids = proxy.generate(PROMPT, **PLAIN, streamer=streamer)
    assert capsys.readouterr().out.rstrip("\n") == bpe_tokenizer.decode(ids[0, 7:]).rstrip("\n")


def test_a_cache_of_one_model_is_refused(qwen):
    cache = qwen[0](input_ids=PROMPT, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="the cache that it returned"):
        ProxyTunedLM(*qwen)(input_ids=PROMPT, past_key_values=cache)


def test_a_static_cache_is_refused(qwen):
    with pytest.raises(ModelError, match="dynamic caches only"):
        ProxyTunedLM(*qwen).generate(PROMPT, **PLAIN, cache_implementation="static")


EXAMPLES = [
    Example("a", "The storm caused the flood in the", " old town"),
    Example("b", "A box of letters;", " the author wrote the letters. Cause-Effect(e1,e2)"),
    Example("c", "Relation", " Other"),
]


def test_scores_are_the_log_softmax_of_the_combined_logits(parts, proxy, bpe_tokenizer):
    rows = tokenize(EXAMPLES, bpe_tokenizer, max_length=64)
    scores = TransformersScorer(proxy, score_end_of_turn=True).score(rows)
    for row, score in zip(rows, scores, strict=True):
        logprobs = naive_logits(parts, torch.tensor([row.input_ids]))[0].double().log_softmax(-1)
        positions = row.scored_positions(end_of_turn=True)
        expected = [float(logprobs[i - 1, row.input_ids[i]]) for i in positions]
        # float32 products in another order: the logits are about 20 here.
        np.testing.assert_allclose(score.token_logprobs, expected, atol=1e-5)


def test_a_prefix_that_all_rows_share_is_read_once_by_the_three(qwen, bpe_tokenizer):
    proxy = ProxyTunedLM(*qwen, alpha=ALPHA)
    shared = "Relation between the engine and the car, one of Cause-Effect, Other or neither. " * 3
    examples = [dataclasses.replace(row, prompt=shared + row.prompt) for row in EXAMPLES]
    rows = tokenize(examples, bpe_tokenizer, max_length=256)
    scorer = TransformersScorer(proxy)
    separate = scorer.score(rows)
    assert scorer.begin(rows) >= 32
    for one, other in zip(scorer.score(rows), separate, strict=True):
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-5)


def test_rows_laid_end_to_end_are_scored_the_same(qwen, bpe_tokenizer):
    proxy = ProxyTunedLM(*qwen, alpha=ALPHA)
    rows = tokenize(EXAMPLES, bpe_tokenizer, max_length=64)
    scorer = TransformersScorer(proxy, padding_free=True)
    assert scorer.is_padding_free
    for one, other in zip(scorer.score(rows), TransformersScorer(proxy).score(rows), strict=True):
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-5)


def test_the_vocabulary_is_scored_in_blocks(qwen, monkeypatch):
    proxy = ProxyTunedLM(*qwen, alpha=ALPHA)
    with torch.inference_mode():
        hidden = proxy.base_model(input_ids=PROMPT).last_hidden_state[0, :-1]
        seen = []
        combine = proxy.combine
        monkeypatch.setattr(
            proxy, "combine", lambda *logits: seen.append(logits[0].shape) or combine(*logits)
        )
        block = type("Block", (), {"positions": 4, "tokens": 100})
        monkeypatch.setattr("atlantis.models.head._CPU_BLOCK", block)
        found = completion_logprobs(proxy, hidden, PROMPT[0, 1:])
        assert seen == [(n, width) for n in (4, 2) for width in (100, 100, 100, 20)]
        whole = target_logprobs(proxy, hidden, PROMPT[0, 1:], chunk_size=3).logprobs
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_a_head_that_gives_all_logits_or_none_is_scored_the_same(tiny_model, bpe_tokenizer):
    class Wrapped(torch.nn.Linear):
        """Stands for a head that is quantized or has an adapter."""

    parts = [tiny_model("qwen2", seed=i, vocab_size=320 + 32 * i) for i in range(3)]
    rows = tokenize(EXAMPLES, bpe_tokenizer, max_length=64)
    expected = TransformersScorer(ProxyTunedLM(*parts, alpha=ALPHA)).score(rows)
    parts[2].lm_head.__class__ = Wrapped
    proxy = ProxyTunedLM(*parts, alpha=ALPHA)
    assert not proxy.get_output_embeddings().is_whole
    for one, other in zip(TransformersScorer(proxy).score(rows), expected, strict=True):
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-5)


def test_three_folders_become_one_model(saved_model, tmp_path):
    folders = [str(saved_model(seed=seed)) for seed in (1, 2, 3)]
    roles = dict(zip(("large", "small", "reference"), folders, strict=True))
    proxy = atlantis.ProxyTunedLM.from_pretrained(**roles, alpha=0.5, device="cpu")
    assert proxy.alpha == 0.5
    found = proxy.generate(PROMPT, **PLAIN)
    expected = naive_loop(proxy.models, PROMPT, choose=greedy, alpha=0.5)
    assert torch.equal(found, expected)
    with pytest.raises(ModelError, match="save the three models"):
        proxy.save_pretrained(tmp_path)


def test_a_model_in_two_roles_is_loaded_once(saved_model):
    large, small = str(saved_model(seed=1)), str(saved_model(seed=2))
    proxy = ProxyTunedLM.from_pretrained(large=large, small=small, reference=large)
    assert proxy.large is proxy.reference
    assert torch.equal(
        proxy.generate(PROMPT, **PLAIN), naive_loop(proxy.models, PROMPT, choose=greedy, alpha=1.0)
    )


def test_the_reference_may_be_an_adapter_of_the_small_model(saved_model, tmp_path):
    large, small = str(saved_model(seed=1)), str(saved_model(seed=2))
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(small),
        LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    proxy = ProxyTunedLM.from_pretrained(large=large, small=small, reference=str(tmp_path))
    parts = (proxy.large, proxy.small, tuned.eval())
    expected = naive_loop(parts, PROMPT, choose=greedy, alpha=1.0)
    assert torch.equal(proxy.generate(PROMPT, **PLAIN), expected)
    assert not torch.equal(expected, proxy.large.generate(PROMPT, **PLAIN))
    with torch.inference_mode():
        hidden = proxy.base_model(input_ids=PROMPT).last_hidden_state[0, :-1]
        found = completion_logprobs(proxy, hidden, PROMPT[0, 1:])
    logprobs = naive_logits(parts, PROMPT, alpha=1.0)[0, :-1].log_softmax(-1)
    exact = logprobs.gather(-1, PROMPT[0, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)


def _other_tokenizer(folder, *, change):
    words = {"<eos>": 0, "<pad>": 1} | {f"word{i}": i for i in range(2, 320)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    change(inner)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_different_tokenizers_are_refused_before_anything_is_loaded(saved_model, monkeypatch):
    large, small = str(saved_model(seed=1)), saved_model(seed=2)
    _other_tokenizer(small, change=lambda inner: None)
    monkeypatch.setattr("atlantis.models.proxy.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=r"different tokenizers: \d+ tokens differ, such as"):
        ProxyTunedLM.from_pretrained(large=large, small=str(small), reference=large)


def test_tokenizers_that_split_text_differently_are_refused(saved_model):
    def by_characters(inner):
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")

    # Not Qwen2: for that type a tokenizer of its own is loaded instead.
    large, small = saved_model("llama", seed=1), saved_model("llama", seed=2)
    large = _other_tokenizer(large, change=lambda inner: None)
    small = _other_tokenizer(small, change=by_characters)
    with pytest.raises(ModelError, match="becomes other tokens"):
        ProxyTunedLM.from_pretrained(large=large, small=small, reference=small)


def test_a_token_beyond_the_shared_vocabulary_does_not_count(saved_model, bpe_tokenizer, tmp_path):
    # Tuned models often bring a padding token of their own.
    folders = [saved_model(seed=1), saved_model(seed=2), saved_model(seed=3, vocab_size=384)]
    extended = type(bpe_tokenizer).from_pretrained(folders[2])
    extended.add_special_tokens({"pad_token": "<mine>"})
    assert extended.pad_token_id >= 320
    extended.save_pretrained(folders[2])
    large, small, reference = map(str, folders)
    proxy = ProxyTunedLM.from_pretrained(large=large, small=small, reference=reference)
    assert proxy.config.vocab_size == 320


@pytest.mark.parametrize("setting", [{"revision": "main"}, {"adapter": "x"}])
def test_a_setting_of_one_model_is_refused(saved_model, setting):
    folder = str(saved_model(seed=1))
    with pytest.raises(ConfigError, match="belongs to one model"):
        ProxyTunedLM.from_pretrained(large=folder, small=folder, reference=folder, **setting)


def test_an_unknown_setting_is_refused(saved_model):
    folder = str(saved_model(seed=1))
    with pytest.raises(ConfigError, match="did you mean 'dtype'"):
        ProxyTunedLM.from_pretrained(large=folder, small=folder, reference=folder, dtyp="float32")


def test_lm_eval_scores_and_generates_with_it(parts, proxy, bpe_tokenizer):
    reason = "needs lm-eval 0.4.13, in an environment of its own"
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason=reason)
    from lm_eval.api.instance import Instance

    harness = huggingface.HFLM(
        pretrained=proxy, tokenizer=bpe_tokenizer, backend="causal", batch_size=2
    )
    pairs = [(row.prompt, row.completion) for row in EXAMPLES]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (prompt, completion), (total, _) in zip(pairs, harness.loglikelihood(asked), strict=True):
        context = bpe_tokenizer(prompt)["input_ids"]
        ids = torch.tensor([bpe_tokenizer(prompt + completion)["input_ids"]])
        logprobs = naive_logits(parts, ids)[0].log_softmax(-1)
        expected = sum(float(logprobs[i - 1, ids[0, i]]) for i in range(len(context), ids.shape[1]))
        assert total == pytest.approx(expected, abs=1e-4)  # float32 sums of up to 20 tokens
    stop = {"until": ["<eos>"], "max_gen_toks": NEW, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (prompt, stop), i) for i, (prompt, _) in enumerate(pairs)
    ]
    for (prompt, _), text in zip(pairs, harness.generate_until(asked), strict=True):
        ids = torch.tensor([bpe_tokenizer(prompt)["input_ids"]])
        new = naive_loop(parts, ids, choose=greedy)[0, ids.shape[1] :].tolist()
        new = new[: new.index(0)] if 0 in new else new
        assert text == bpe_tokenizer.decode(new, skip_special_tokens=True)
