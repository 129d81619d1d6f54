"""What a base's folder brings along: refused in one line before anything runs, or not taken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from isogloss.errors import ConfigError
from isogloss.model.load import check_base, check_length, load_model, load_tokenizer, skeleton


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """A copy of a model's folder that a test may spoil."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | entries), "utf-8")


def refusal(folder: Path) -> str:
    """The line of the check; loading the model says the same."""
    with pytest.raises(ConfigError) as caught:
        check_base(str(folder), load_tokenizer(str(folder)))
    with pytest.raises(ConfigError) as loaded:
        load_model(str(folder), torch.float32)
    assert str(loaded.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_passes(folder):
    """Nothing is said of it, and it loads to what lies in its file."""
    check_base(str(folder), load_tokenizer(str(folder)))
    loaded = load_model(str(folder), torch.float32).state_dict()
    kept = load_file(folder / "model.safetensors")
    assert kept and all(torch.equal(loaded[name], weight) for name, weight in kept.items())


def test_weights_that_are_a_pointer(folder):
    """As git leaves them where git-lfs is missing."""
    weights = folder / "model.safetensors"
    weights.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 809696000\n", "utf-8"
    )
    assert refusal(folder) == f"model: {weights} is a git-lfs pointer; run `git lfs pull` in its folder"


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_short(folder, kept):
    """In their header or behind it."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * kept)])
    said = refusal(folder)
    assert said.startswith(f"model: {weights} is cut short or no safetensors file (")
    assert said.endswith("); fetch it again")


def test_weights_that_are_not_there(folder):
    """None at all, or one file of several."""
    weights = folder / "model.safetensors"
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    weights.rename(folder / "one.safetensors")
    assert refusal(folder) == f"model: {folder} has no weights; its folder must hold a model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert refusal(folder) == (
        f"model: {folder} lacks two.safetensors, which its index names; fetch it again"
    )


def test_a_tensor_that_is_not_there(folder):
    """transformers would draw it at random; seen when the weights are loaded."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError) as caught:
        load_model(str(folder), torch.float32)
    assert str(caught.value) == (
        f"model: {folder} lacks the weights model.layers.1.mlp.up_proj.weight; fetch it again"
    )


def test_weights_of_another_shape(folder):
    """Seen in the files' headers."""
    change(folder / "config.json", vocab_size=300)
    assert refusal(folder) == (
        f"model: {folder}'s config.json wants model.embed_tokens.weight to be [300, 24] and its weights have "
        "[269, 24]; they are of two models"
    )


def test_a_base_in_four_bits(folder):
    """Whether or not the library for them is there."""
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert refusal(folder) == (
        f"model: {folder} is quantised already (bitsandbytes); name the folder of its original weights, and "
        "set four_bit to have them in 4 bits"
    )


@pytest.mark.parametrize("kind", ["bart", "t5", "mbart"])
def test_an_encoder_and_a_decoder(folder, kind):
    """transformers would load the decoder of some alone."""
    (folder / "config.json").write_text(json.dumps(AutoConfig.for_model(kind).to_dict()), "utf-8")
    assert refusal(folder) == (f"model: {folder} has an encoder and a decoder; take a decoder-only model")


def test_code_of_its_own(folder, monkeypatch):
    """Nobody is asked whether it may run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    change(
        folder / "config.json", model_type="baichuan",
        auto_map={"AutoConfig": "configuration_baichuan.C", "AutoModelForCausalLM": "modeling_baichuan.M"},
    )  # fmt: skip
    assert refusal(folder) == (
        f"model: {folder} comes with code of its own, which is never run; take a model that transformers "
        "has a class for"
    )


def test_a_type_that_transformers_has_not(folder):
    """The library's own first line is told."""
    change(folder / "config.json", model_type="llama99")
    assert refusal(folder).startswith(
        f"model: {folder} cannot be loaded: ValueError: The checkpoint you are "
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_file_that_is_no_json(folder, file):
    """Such as a git-lfs pointer."""
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\n", "utf-8")
    with pytest.raises(ConfigError, match=rf"^model: {folder} cannot be loaded: .*$"):
        load_tokenizer(str(folder))


def test_an_adapter_beside_the_weights(folder, tiny):
    """transformers would put it on them; a folder of an adapter alone is no base."""
    get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    expected = (
        f"model: {folder} holds an adapter (adapter_config.json); name a folder without one, or merge it "
        "into its base first"
    )
    for spoiled in (lambda: None, (folder / "config.json").unlink):
        spoiled()
        for load in (load_tokenizer, skeleton, lambda name: load_model(name, torch.float32)):
            with pytest.raises(ConfigError) as caught:
                load(str(folder))
            assert str(caught.value) == expected


def test_more_tokens_than_embeddings(folder):
    """A token that texts may become is refused; a special one that no template writes may lie beyond."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<image{number}>" for number in range(9)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    check_base(str(folder), load_tokenizer(str(folder)))
    tokenizer.add_tokens(["<word>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        check_base(str(folder), load_tokenizer(str(folder)))
    assert str(caught.value) == (
        f"model: {folder} has embeddings for 269 tokens and its tokenizer gives '<word>' the id 270; name a "
        "tokenizer of the same model, or resize the embeddings"
    )


def test_neither_padding_nor_an_end(folder):
    """The template's end of turn fills rows up; a template that ends none leaves nothing that could."""
    backend = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    bare.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "<|end|>"
    bare.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    bare.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(folder))
    assert str(caught.value) == (
        f"model: the tokenizer of {folder} has neither a pad_token nor an eos_token; name one of them in its "
        "tokenizer_config.json"
    )


def test_texts_beyond_the_positions(base):
    """Learned ones end there, and rotary ones were never trained."""
    check_length(skeleton(str(base)), "base", 1024, "row 3/sw")
    with pytest.raises(ConfigError) as caught:
        check_length(skeleton(str(base)), "base", 1025, "row 3/sw")
    assert str(caught.value) == "row 3/sw has 1025 tokens and base has 1024 positions; leave it out"


def test_a_model_that_reads_ahead_is_refused(tmp_path, tokenizer, tiny, monkeypatch):
    """As those with masks of their own do."""
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def loaded(*args, **kwargs):
        model, told = load(*args, **kwargs)
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(lambda m, i, out: (out[0] + out[0].mean(1, True), *out[1:]))
        return model, told

    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    with pytest.raises(ConfigError) as caught:
        load_model(str(tmp_path), torch.float32)
    assert str(caught.value) == (
        f"model: {tmp_path} (Qwen3ForCausalLM) reads the tokens behind a position; take a causal "
        "language model"
    )
