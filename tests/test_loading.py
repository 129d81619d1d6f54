"""Problems in a base's folder: refused in one line before anything runs."""

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
    """A copy of a model's folder that a test may damage."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | entries), "utf-8")


def refusal(folder: Path) -> str:
    """Return the line of the check's error; loading the model must raise the same."""
    with pytest.raises(ConfigError) as caught:
        check_base(str(folder), load_tokenizer(str(folder)))
    with pytest.raises(ConfigError) as loaded:
        load_model(str(folder), torch.float32)
    assert str(loaded.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_complete_folder_passes(folder):
    """It loads to exactly the weights in its file."""
    check_base(str(folder), load_tokenizer(str(folder)))
    loaded = load_model(str(folder), torch.float32).state_dict()
    kept = load_file(folder / "model.safetensors")
    assert kept and all(torch.equal(loaded[name], weight) for name, weight in kept.items())


def test_git_lfs_pointers_are_refused(folder):
    """Git leaves them where git-lfs is not installed."""
    weights = folder / "model.safetensors"
    weights.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 809696000\n", "utf-8"
    )
    assert refusal(folder) == f"model: {weights} is a git-lfs pointer; run `git lfs pull` in its folder"


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(folder, kept):
    """They are cut in their header or after it."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * kept)])
    said = refusal(folder)
    assert said.startswith(f"model: {weights} is truncated or not a safetensors file (")
    assert said.endswith("); download it again")


def test_missing_weights_are_refused(folder):
    """Either all are missing, or one file of several."""
    weights = folder / "model.safetensors"
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    weights.rename(folder / "one.safetensors")
    assert refusal(folder) == f"model: {folder} has no weights; its folder must hold a model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert refusal(folder) == (
        f"model: {folder} lacks two.safetensors, which its index lists; download it again"
    )


def test_a_missing_tensor_is_refused(folder):
    """transformers would initialise it at random; it is noticed when the weights are loaded."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError) as caught:
        load_model(str(folder), torch.float32)
    assert str(caught.value) == (
        f"model: {folder} lacks the weights model.layers.1.mlp.up_proj.weight; download it again"
    )


def test_weights_of_another_shape_are_refused(folder):
    """The shapes are read from the files' headers."""
    change(folder / "config.json", vocab_size=300)
    assert refusal(folder) == (
        f"model: {folder}'s config.json expects model.embed_tokens.weight to be [300, 24], but its weights "
        "have [269, 24]; they are from different models"
    )


def test_a_quantised_base_is_refused(folder):
    """It does not matter whether its library is installed."""
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert refusal(folder) == (
        f"model: {folder} is already quantised (bitsandbytes); name the folder of its original weights, and "
        "set four_bit to load them in 4 bits"
    )


@pytest.mark.parametrize("kind", ["bart", "t5", "mbart"])
def test_an_encoder_decoder_model_is_refused(folder, kind):
    """transformers would load only the decoder of some."""
    (folder / "config.json").write_text(json.dumps(AutoConfig.for_model(kind).to_dict()), "utf-8")
    assert refusal(folder) == (f"model: {folder} is an encoder-decoder model; use a decoder-only model")


def test_custom_code_is_refused(folder, monkeypatch):
    """The user is not asked whether it may run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    change(
        folder / "config.json", model_type="baichuan",
        auto_map={"AutoConfig": "configuration_baichuan.C", "AutoModelForCausalLM": "modeling_baichuan.M"},
    )  # fmt: skip
    assert refusal(folder) == (
        f"model: {folder} needs custom code, which is never run; use a model that transformers "
        "has a class for"
    )


def test_a_model_type_that_transformers_lacks_is_refused(folder):
    """The error has the first line of the library's message."""
    change(folder / "config.json", model_type="llama99")
    assert refusal(folder).startswith(
        f"model: {folder} cannot be loaded: ValueError: The checkpoint you are "
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_file_that_is_not_json_is_refused(folder, file):
    """It may be a git-lfs pointer."""
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\n", "utf-8")
    with pytest.raises(ConfigError, match=rf"^model: {folder} cannot be loaded: .*$"):
        load_tokenizer(str(folder))


def test_an_adapter_beside_the_weights_is_refused(folder, tiny):
    """transformers would apply it to them; a folder with only an adapter is not a base."""
    get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    expected = (
        f"model: {folder} contains an adapter (adapter_config.json); name a folder without one, or merge it "
        "into its base first"
    )
    for spoiled in (lambda: None, (folder / "config.json").unlink):
        spoiled()
        for load in (load_tokenizer, skeleton, lambda name: load_model(name, torch.float32)):
            with pytest.raises(ConfigError) as caught:
                load(str(folder))
            assert str(caught.value) == expected


def test_a_token_without_an_embedding_is_refused(folder):
    """This applies to tokens that text can become; special ones that no template writes are accepted."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<image{number}>" for number in range(9)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    check_base(str(folder), load_tokenizer(str(folder)))
    tokenizer.add_tokens(["<word>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        check_base(str(folder), load_tokenizer(str(folder)))
    assert str(caught.value) == (
        f"model: {folder} has embeddings for 269 tokens, but its tokenizer gives '<word>' the id 270; use "
        "the tokenizer of the same model, or resize the embeddings"
    )


def test_a_tokenizer_without_pad_and_eos_tokens_is_refused(folder):
    """The template's end-of-turn token is used for padding, if it has one."""
    backend = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    bare.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "<|end|>"
    bare.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    bare.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(folder))
    assert str(caught.value) == (
        f"model: the tokenizer of {folder} has neither a pad_token nor an eos_token; set one of them in its "
        "tokenizer_config.json"
    )


def test_texts_longer_than_the_positions_are_refused(base):
    """Learned positions end there, and rotary ones were never trained beyond."""
    check_length(skeleton(str(base)), "base", 1024, "row 3/sw")
    with pytest.raises(ConfigError) as caught:
        check_length(skeleton(str(base)), "base", 1025, "row 3/sw")
    assert str(caught.value) == "row 3/sw has 1025 tokens, but base has only 1024 positions; leave it out"


def test_a_model_that_attends_to_later_tokens_is_refused(tmp_path, tokenizer, tiny, monkeypatch):
    """Models with their own attention masks may do so."""
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
        f"model: {tmp_path} (Qwen3ForCausalLM) attends to later tokens; use a causal language model"
    )
