"""Loading and identifying models: shards, adapters, revisions, quantized weights, refusals."""

import json
import os
import shutil
import warnings

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers import dynamic_module_utils as remote_code

from atlantis.errors import ModelError
from atlantis.models import sources
from atlantis.models.encoder_decoder import decoder_start_token
from atlantis.models.loading import (
    LoadingConfig,
    fingerprint_model,
    is_encoder_decoder,
    load_model,
    load_tokenizer,
)

CPU = LoadingConfig(device="cpu")
IDS = torch.randint(2, 320, (3, 20), generator=torch.Generator().manual_seed(0))
COMMITS = ("a" * 40, "b" * 40)


def cpu(**settings):
    return LoadingConfig(device="cpu", **settings)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def save_adapter(
    folder, base, *, targets=("q_proj", "v_proj", "down_proj"), seed=5, std=0.2, **settings
):
    """A LoRA adapter that changes a lot, on disk."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), **settings)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=std)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        adapted.save_pretrained(folder)  # says that it saves targeted embeddings too
    return str(folder)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def base(saved_model):
    return saved_model("qwen2")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("lora") / "adapter", base)


@pytest.fixture(scope="module")
def seq2seq(bpe_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=1
    )
    config.decoder_start_token_id = 1
    T5ForConditionalGeneration(config).save_pretrained(folder)
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(base, saved_model, tmp_path, monkeypatch):
    """A Hub repository with two commits in a cache of its own; the branch is at the second."""
    repository = tmp_path / "hub" / "models--someone--model"
    for commit, source in zip(COMMITS, (base, saved_model("qwen2", seed=1)), strict=True):
        shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[1])
    (repository / "refs" / "v1").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/model"


def test_a_model_in_shards_is_the_model_in_one_file(base, tmp_path, bpe_tokenizer):
    whole = load_model(str(base), CPU)
    whole.save_pretrained(tmp_path, max_shard_size="30KB")
    bpe_tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(load_model(str(tmp_path), CPU)), logits(whole))
    fingerprint = fingerprint_model(str(tmp_path))
    assert set(fingerprint) == {path.name for path in tmp_path.iterdir()}


def test_a_missing_shard_is_refused_by_its_name(base, tmp_path, bpe_tokenizer):
    load_model(str(base), CPU).save_pretrained(tmp_path, max_shard_size="30KB")
    bpe_tokenizer.save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"it lacks {shard.name} of its weights"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"],
)
def test_every_file_that_decides_numbers_is_in_the_fingerprint(base, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    before = fingerprint_model(str(folder))
    path = folder / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    after = fingerprint_model(str(folder))
    assert {key for key in after if after[key] != before.get(key)} == {name}


def test_weights_that_are_not_read_are_not_hashed(base, tmp_path):
    # Mistral's repositories hold every weight a second time.
    shutil.copytree(base, tmp_path / "model")
    before = fingerprint_model(str(tmp_path / "model"))
    (tmp_path / "model" / "consolidated.safetensors").write_bytes(b"again")
    assert fingerprint_model(str(tmp_path / "model")) == before


def test_a_file_is_hashed_once_until_it_changes(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "model")
    hashed = []

    def digest(path):
        hashed.append(path.name)
        return str(len(hashed))

    monkeypatch.setattr(sources, "digest_file", digest)
    first = fingerprint_model(str(tmp_path / "model"))
    assert fingerprint_model(str(tmp_path / "model")) == first
    assert len(hashed) == len(first)
    weights = tmp_path / "model" / "model.safetensors"
    found = weights.stat()
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert fingerprint_model(str(tmp_path / "model")) != first
    assert hashed[len(first) :] == ["model.safetensors"]


def test_an_adapter_has_the_logits_that_peft_gives(base, adapter):
    plain = AutoModelForCausalLM.from_pretrained(base)
    right = logits(PeftModel.from_pretrained(plain, adapter).eval())
    found = load_model(str(base), cpu(adapter=adapter))
    assert not any("lora" in name for name, _ in found.named_modules())  # merged
    assert type(found) is Qwen2ForCausalLM
    torch.testing.assert_close(logits(found), right, rtol=1e-4, atol=1e-4)  # float32 products
    assert (right - logits(load_model(str(base), CPU))).abs().max() > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"targets": ["q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"targets": ["embed_tokens", "v_proj"]},
        {"trainable_token_indices": [3, 4, 9]},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_adapters_on_every_part_have_the_logits_that_peft_gives(base, tmp_path, settings, dtype):
    folder = save_adapter(tmp_path / "adapter", base, **settings)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    right = logits(PeftModel.from_pretrained(plain, folder).eval())
    found = load_model(str(base), cpu(adapter=folder, dtype=dtype))
    assert not torch.equal(right, logits(load_model(str(base), cpu(dtype=dtype))))
    if dtype == "float32":  # float32 products in another order
        torch.testing.assert_close(logits(found), right, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(logits(found), right)


def test_a_small_adapter_survives_in_bfloat16_because_it_is_not_merged(base, tmp_path):
    folder = save_adapter(tmp_path / "small", base, std=0.005)
    plain = load_model(str(base), cpu(dtype="bfloat16"))
    found = load_model(str(base), cpu(dtype="bfloat16", adapter=folder))
    assert any("lora" in name for name, _ in found.named_modules())
    exact = AutoModelForCausalLM.from_config(plain.config, dtype=torch.float64).eval()
    exact.load_state_dict(plain.state_dict())
    without = logits(exact)
    right = logits(PeftModel.from_pretrained(exact, folder).eval())
    merged = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    change = (right - without).norm()
    assert (logits(found.double()) - right).norm() < 0.01 * change
    assert (logits(merged.double()) - right).norm() > 0.3 * change  # rounded away


def test_a_folder_with_an_adapter_is_a_model(base, adapter, tmp_path, bpe_tokenizer):
    right = logits(load_model(str(base), cpu(adapter=adapter)))
    assert torch.equal(logits(load_model(adapter, CPU)), right)
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(str(base)).get_vocab()
    assert not is_encoder_decoder(adapter)
    own = tmp_path / "with_tokenizer"
    shutil.copytree(adapter, own)
    bpe_tokenizer.chat_template, before = "{{ messages }}", bpe_tokenizer.chat_template
    bpe_tokenizer.save_pretrained(own)
    bpe_tokenizer.chat_template = before
    assert load_tokenizer(str(own)).chat_template == "{{ messages }}"
    assert load_tokenizer(adapter).chat_template is None


def test_the_fingerprint_covers_the_adapter(base, adapter, tmp_path):
    plain = fingerprint_model(str(base))
    found = fingerprint_model(str(base), cpu(adapter=adapter))
    assert found.items() > plain.items()
    assert "adapter/adapter_model.safetensors" in found
    assert fingerprint_model(adapter) == found
    other = save_adapter(tmp_path / "other", base, seed=6)
    changed = fingerprint_model(str(base), cpu(adapter=other))
    assert {key for key in found if changed[key] != found[key]} == {
        "adapter/adapter_model.safetensors"
    }


def test_an_adapter_for_another_architecture_is_refused(base, saved_model, adapter, tmp_path):
    gpt2 = saved_model("gpt2")
    with pytest.raises(ModelError, match=r"an adapter for another model than .*\(Target modules"):
        load_model(str(gpt2), cpu(adapter=adapter))
    deeper = saved_model("qwen2", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"it has no weights base_model\.model\.model\.layers\.2"):
        load_model(str(deeper), cpu(adapter=adapter))
    for_deeper = save_adapter(tmp_path / "deeper", deeper)
    with pytest.raises(ModelError, match=r"no place for base_model\.model\.model\.layers\.2"):
        load_model(str(base), cpu(adapter=for_deeper))
    wider = saved_model("qwen2", hidden_size=64)
    with pytest.raises(ModelError, match="another model than"):
        load_model(str(wider), cpu(adapter=adapter))


def test_an_adapter_that_does_not_live_in_layers_is_refused(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match="PROMPT_TUNING adapters are not supported"):
        load_model(str(base), cpu(adapter=str(tmp_path / "prompt")))


def test_adapters_that_are_not_whole_are_refused_before_anything_is_loaded(base, adapter, tmp_path):
    cases = {
        "nowhere": ("neither a folder nor a Hub name|neither a folder with", None),
        "no_weights": ("no adapter_model.safetensors", "adapter_model.safetensors"),
        "no_config": ("has no adapter_config.json", "adapter_config.json"),
    }
    for name, (message, removed) in cases.items():
        folder = tmp_path / name
        if removed is not None:
            shutil.copytree(adapter, folder)
            (folder / removed).unlink()
        given = str(folder) if removed is not None else "adapters/none"
        with pytest.raises(ModelError, match=message):
            load_tokenizer(str(base), cpu(adapter=given))
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(str(base), cpu(adapter="/no/such/adapter"))
    with pytest.raises(ModelError, match="is an adapter itself"):
        load_tokenizer(adapter, cpu(adapter=adapter))


def test_damaged_adapters_are_refused(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"no readable adapter_model\.safetensors"):
        load_model(str(base), cpu(adapter=str(tmp_path / "cut")))
    shutil.copytree(adapter, tmp_path / "kind")
    edit_json(tmp_path / "kind" / "adapter_config.json", peft_type="MAGIC")
    with pytest.raises(ModelError, match="not a usable adapter"):
        load_model(str(base), cpu(adapter=str(tmp_path / "kind")))
    shutil.copytree(adapter, tmp_path / "text")
    (tmp_path / "text" / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not a usable adapter"):
        load_model(str(base), cpu(adapter=str(tmp_path / "text")))


def test_an_adapter_without_its_base_is_refused(adapter, tmp_path):
    for number, (name, message) in enumerate(
        [
            ("/gone/away", "its base model /gone/away: no such folder"),
            (None, "names no base_model_name_or_path"),
            (adapter, "is an adapter too"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(adapter, folder)
        edit_json(folder / "adapter_config.json", base_model_name_or_path=name)
        with pytest.raises(ModelError, match=message):
            fingerprint_model(str(folder))


def test_a_folder_with_a_model_and_an_adapter_is_refused(base, adapter, tmp_path):
    # transformers would apply the adapter and nothing would say so.
    shutil.copytree(base, tmp_path / "both")
    shutil.copytree(adapter, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(ModelError, match="holds a model and an adapter"):
        load_model(str(tmp_path / "both"), CPU)


def test_revisions_of_a_hub_model_are_models_of_their_own(hub, base):
    first, second = (load_model(hub, cpu(revision=name)) for name in ("v1", COMMITS[1]))
    assert torch.equal(logits(first), logits(load_model(str(base), CPU)))
    assert torch.equal(logits(second), logits(load_model(hub, CPU)))
    assert not torch.equal(logits(first), logits(second))
    assert fingerprint_model(hub, cpu(revision="v1")) == {"hub": hub, "commit": COMMITS[0]}
    assert fingerprint_model(hub)["commit"] == COMMITS[1]


def test_an_adapter_on_a_hub_model_is_identified_by_both(hub, base, adapter):
    found = fingerprint_model(hub, cpu(revision="v1", adapter=adapter))
    assert found["commit"] == COMMITS[0]
    assert "adapter/adapter_model.safetensors" in found
    right = logits(load_model(str(base), cpu(adapter=adapter)))
    assert torch.equal(logits(load_model(hub, cpu(revision="v1", adapter=adapter))), right)


def test_revisions_that_are_not_there_are_refused(hub, base):
    with pytest.raises(ModelError, match="someone/model at revision v9: neither"):
        load_model(hub, cpu(revision="v9"))
    with pytest.raises(ModelError, match="a folder has no revision 'v1'"):
        load_model(str(base), cpu(revision="v1"))


def test_pickled_weights_are_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"pickled ones \(\*\.bin\) are never read"):
        fingerprint_model(str(tmp_path / "model"))


def test_weights_that_the_architecture_lacks_are_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", num_hidden_layers=3)
    edit_json(tmp_path / "model" / "config.json", layer_types=["full_attention"] * 3)
    with pytest.raises(ModelError, match=r"it has no weights model\.layers\.2"):
        load_model(str(tmp_path / "model"), CPU)


def test_an_encoder_decoder_is_known_by_its_configuration(seq2seq, base):
    assert is_encoder_decoder(str(seq2seq))
    assert not is_encoder_decoder(str(base))
    assert decoder_start_token(str(seq2seq)) == 1
    assert decoder_start_token(str(base)) is None
    assert isinstance(load_model(str(seq2seq), CPU), T5ForConditionalGeneration)


def test_an_encoder_decoder_without_a_start_token_is_refused(seq2seq, tmp_path):
    shutil.copytree(seq2seq, tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", decoder_start_token_id=None)
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        decoder_start_token(str(tmp_path / "model"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_scales_as_before_it_was_saved(tmp_path, bpe_tokenizer, tied):
    config = T5Config(
        vocab_size=320,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=1,
        tie_word_embeddings=tied,
    )
    model = T5ForConditionalGeneration(config).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(320, 32))
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    found = load_model(str(tmp_path), CPU)
    with torch.no_grad():
        expected = model(input_ids=IDS, decoder_input_ids=IDS).logits
        assert torch.equal(found(input_ids=IDS, decoder_input_ids=IDS).logits, expected)


@pytest.fixture
def with_code(base, tmp_path, monkeypatch):
    """A model that comes with code of its own."""
    folder = tmp_path / "with_code"
    shutil.copytree(base, folder)
    (folder / "own_model.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n\n\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own'\n\n\n"
        "class OwnModel(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"}
    edit_json(folder / "config.json", model_type="own", auto_map=names)
    monkeypatch.setattr(remote_code, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return str(folder)


def test_code_that_comes_with_a_model_runs_only_when_it_is_trusted(with_code, base):
    with pytest.raises(
        ModelError, match="Python code of its own; read it, then set trust_remote_code"
    ):
        load_model(with_code, CPU)
    trusted = cpu(trust_remote_code=True)
    found = load_model(with_code, trusted)
    assert type(found).__name__ == "OwnModel"
    assert torch.equal(logits(found), logits(load_model(str(base), CPU)))
    fingerprint = fingerprint_model(with_code, trusted)
    assert fingerprint["trust_remote_code"] == "true"
    assert "own_model.py" in fingerprint
    assert "trust_remote_code" not in fingerprint_model(with_code)


def test_accelerate_places_a_model(base):
    found = load_model(str(base), LoadingConfig(device_map="auto"))
    here = load_model(str(base), LoadingConfig())
    torch.testing.assert_close(
        logits(found.cpu()), logits(here.cpu()), rtol=1e-5, atol=1e-5
    )  # one device or the other
    with pytest.raises(ValidationError, match="leave out device 'cpu'"):
        LoadingConfig(device_map="auto", device="cpu")


def test_quantization_without_bitsandbytes_is_refused_in_one_line(base, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'atlantis-sft\[quantized\]'"):
        load_model(str(base), cpu(quantization="4bit"))


@pytest.mark.parametrize(("kind", "bits"), [("4bit", 4), ("8bit", 8)])
def test_quantized_weights_are_near_the_whole_ones(shared_models, kind, bits):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantized`")
    name = str(shared_models / "tiny-a" / "large")
    whole = logits(load_model(name, CPU)).log_softmax(-1)
    found = load_model(name, cpu(quantization=kind))
    assert found.get_memory_footprint() < load_model(name, CPU).get_memory_footprint() * 0.8
    error = (logits(found).log_softmax(-1) - whole).abs().mean().item()
    assert 1e-4 < error < 2.0 ** (4 - bits)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_an_adapter_on_quantized_weights_is_not_merged(saved_model, tmp_path, kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantized`")
    # Rows of 64 and 128: bitsandbytes quantizes whole blocks of 64 on a CPU.
    base = saved_model("qwen2", hidden_size=64, intermediate_size=128)
    adapter = save_adapter(tmp_path / "adapter", base)
    found = load_model(str(base), cpu(quantization=kind, adapter=adapter))
    assert any("lora" in name for name, _ in found.named_modules())
    right = logits(load_model(str(base), cpu(adapter=adapter))).log_softmax(-1)
    without = logits(load_model(str(base), cpu(quantization=kind))).log_softmax(-1)
    error = (logits(found).log_softmax(-1) - right).abs().mean()
    assert error < 0.5 * (without - right).abs().mean()
