"""GGUF exports against what reads them: gguf, transformers, PEFT, and llama.cpp if it is installed."""

import copy
import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

import gguf
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM

from isogloss.config import load_config
from isogloss.data.chat import encode_chat
from isogloss.data.templates import TEMPLATES
from isogloss.errors import ConfigError, RunError
from isogloss.export import gguf as gguf_export
from isogloss.export.gguf import LAYOUTS, export_gguf
from isogloss.export.modelfile import modelfile
from isogloss.pipeline.folder import Run, open_run
from isogloss.pipeline.training import save_whole

SIZES = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
PROMPT = [3, 40, 77, 110, 77, 41, 1, 4]


def source(file: Path, tokenizer, architecture: str, *, leave_out: int = 0) -> Path:
    """Write a GGUF file with a tiny model's metadata; its weights do not matter here."""
    made = GGUFWriter(file, architecture)
    made.add_name("tiny")
    made.add_license("mit")
    made.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    made.add_context_length(256)
    made.add_embedding_length(32)
    made.add_block_count(3)
    made.add_feed_forward_length(64)
    made.add_head_count(4)
    made.add_head_count_kv(2)
    made.add_key_length(16)
    made.add_value_length(16)
    made.add_rope_dimension_count(16)
    made.add_layer_norm_rms_eps(1e-6)
    made.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    if architecture == "gemma3":
        made.add_sliding_window(512)
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[: 261 - leave_out]
    made.add_token_list(tokens)
    made.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    made.add_token_merges(["a b"])
    made.add_eos_token_id(1)
    made.add_add_bos_token(False)
    made.add_chat_template("{# another #}")
    made.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return file


def finished(folder: Path, tokenizer, kind: str, **settings) -> Run:
    """Return a run over a random model whose languages differ; its base is a GGUF file."""
    file = source(folder / "base.gguf", tokenizer, LAYOUTS[kind].architecture, **settings)
    set_ = (
        "languages.targets=[sw,ru]",
        "distill.adapter.ranks={root: 2, family: 1, language: 2}",
        "distill.adapter.layers=2",
        "dtype=float32",
        f"model={file}",
    )
    run = open_run(load_config(None, (*set_, f"run={folder / 'run'}")))
    torch.manual_seed(0)
    sizes = SIZES | ({"query_pre_attn_scalar": 16} if kind == "gemma3_text" else {})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, tie_word_embeddings=True))
    for name, weight in model.named_parameters():
        if "norm" in name:  # initialised to constants, which would hide mistakes
            torch.nn.init.normal_(weight, 1.0, 0.1)
    model.save_pretrained(run.tuned)
    tokenizer.save_pretrained(run.tuned)
    adapters = run.student(run.reference_model(), trained=False)
    state = {name: torch.randn_like(p) * 0.3 for name, p in adapters.state().items()}
    save_whole(state, run.trained)
    return run


@pytest.fixture(autouse=True)
def unconverted(monkeypatch, tmp_path) -> None:
    """Give the base a folder without notices; otherwise its file would be converted."""
    monkeypatch.setattr(gguf_export, "notices_folder", lambda name: tmp_path)


@pytest.fixture(params=["gemma3_text", "llama"])
def run(request, tokenizer, tmp_path) -> Run:
    return finished(tmp_path, tokenizer, request.param)


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(file).tensors
    }


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.tensor([PROMPT]), use_cache=False).logits[0].float()


def test_transformers_reads_the_tuned_model_back(run, tmp_path):
    """The float32 logits are the same, with norms, rotary halves and the tied head."""
    file = export_gguf(run, ["sw"], tmp_path / "out", ["f32"]).models["f32"]
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, config=AutoConfig.from_pretrained(run.tuned)
    )
    assert torch.allclose(logits(read), logits(run.reference_model()), atol=1e-5)
    assert "output.weight" not in tensors(file)


def test_each_precision_has_its_own_tensor_type(run, tmp_path):
    """Matrices have the requested precision and vectors float32; errors are at most half a step."""
    made = export_gguf(run, ["sw"], tmp_path / "out", ["f16", "bf16", "q8_0"]).models
    types = {
        "f16": GGMLQuantizationType.F16,
        "bf16": GGMLQuantizationType.BF16,
        "q8_0": GGMLQuantizationType.Q8_0,
    }
    files = {"f16": 1, "bf16": 32, "q8_0": 7}
    exact = run.reference_model().state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    for precision, step in (("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254)):
        reader = GGUFReader(made[precision])
        kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
        assert kinds["blk.1.ffn_down.weight"] == kinds["token_embd.weight"] == types[precision]
        assert kinds["blk.1.attn_norm.weight"] == GGMLQuantizationType.F32
        assert reader.fields["general.file_type"].contents() == files[precision]
        worst = np.abs(tensors(made[precision])["blk.1.ffn_down.weight"] - exact).max()
        assert 0 < worst <= step * np.abs(exact).max() * 1.001


def test_the_metadata_of_the_source_file_is_kept_but_the_template_is_the_runs(run, tmp_path):
    file = export_gguf(run, ["sw"], tmp_path / "out", ["f16"]).models["f16"]
    theirs, ours = GGUFReader(tmp_path / "base.gguf").fields, GGUFReader(file).fields
    changed = {
        "general.name",
        "general.file_type",
        "general.quantization_version",
        "tokenizer.chat_template",
        "tokenizer.ggml.eot_token_id",
    }
    added = {key for key in ours if not key.startswith("GGUF.")}
    assert added - changed == {key for key in theirs if not key.startswith("GGUF.")} - changed
    assert all(ours[key].contents() == theirs[key].contents() for key in added - changed)
    assert ours["tokenizer.chat_template"].contents() == run.tokenizer.chat_template
    assert ours["tokenizer.ggml.eot_token_id"].contents() == 1
    assert ours["general.name"].contents() == "base, tuned by isogloss"  # not the file's path


def test_an_adapter_adds_the_lora_product_of_its_path(run, tmp_path):
    """Added to the tuned weights like in llama.cpp and read by transformers, it gives the path's logits."""
    written = export_gguf(run, ["sw", "ru"], tmp_path / "out", ["f32"])
    file, found = written.models["f32"], {}
    for code, folder in written.languages.items():
        about = GGUFReader(folder / "adapter.gguf").fields
        assert [about[key].contents() for key in ("general.type", "adapter.type")] == ["adapter", "lora"]
        alpha, pairs = about["adapter.lora.alpha"].contents(), tensors(folder / "adapter.gguf")
        assert {name.split(".")[1] for name in pairs} == {"0", "1"}  # no pair on the third layer
        assert pairs["blk.0.ffn_down.weight.lora_a"].shape == (5, 64)
        assert pairs["blk.0.ffn_down.weight.lora_b"].shape == (32, 5)
        whole = tensors(file)
        for name in {name.rpartition(".")[0] for name in pairs}:
            down, up = pairs[f"{name}.lora_a"], pairs[f"{name}.lora_b"]
            whole[name] = whole[name] + alpha / len(down) * up @ down
        found[code] = logits(read_back(file, whole, tmp_path / code, run))
        adapters = run.student(run.reference_model(), trained=True)
        with adapters.on([code]) as student:
            assert torch.allclose(found[code], logits(student), atol=1e-4)
    assert not torch.allclose(found["sw"], found["ru"], atol=0.1)


def read_back(like: Path, whole: dict[str, np.ndarray], folder: Path, run: Run):
    """Return the model that transformers loads from a file with these tensors."""
    folder.mkdir()
    reader = GGUFReader(like)
    writer = GGUFWriter(folder / "sum.gguf", reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for name, tensor in whole.items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="sum.gguf", dtype=torch.float32, config=AutoConfig.from_pretrained(run.tuned)
    )


def test_an_impossible_export_is_refused_and_leaves_no_files(aligned, run, tokenizer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"did not come from a GGUF file, whose tokenizer would be copied"):
        export_gguf(aligned.run, ["sw"], out)
    with pytest.raises(ConfigError, match=r"^--precision: 'q2' is not one of f32, f16, bf16, q8_0, q4_k_m$"):
        export_gguf(run, ["sw"], out, ["q2"])
    (tmp_path / "short").mkdir()
    short = finished(tmp_path / "short", tokenizer, "llama", leave_out=1)
    with pytest.raises(RunError, match=r"base\.gguf has 260 tokens, but the tuned model has 261 embeddings$"):
        export_gguf(short, ["sw"], out)
    config = json.loads((short.tuned / "config.json").read_text())
    (short.tuned / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(RunError, match=r"models of type mamba are not supported, only "):
        export_gguf(short, ["sw"], out)
    assert not out.exists() or not list(out.iterdir())
    export_gguf(run, ["sw"], out, ["f16"])
    with pytest.raises(RunError, match=r"out/sw already exists; choose another --out or remove it$"):
        export_gguf(run, ["sw"], out, ["bf16"])
    with pytest.raises(RunError, match=r"out/tuned-f16\.gguf already exists"):
        export_gguf(run, ["ru"], out, ["f16"])


def test_values_that_overflow_float16_are_refused(run, tmp_path):
    model = run.reference_model()
    model.get_input_embeddings().weight.data[7, 3] = 1e5
    model.save_pretrained(run.tuned)
    with pytest.raises(
        RunError, match=r"^--precision f16: token_embd.weight has values that overflow float16"
    ):
        export_gguf(run, ["sw"], tmp_path / "out", ["f16"])
    assert not list((tmp_path / "out").iterdir())


def rendered(template: str, system: str, turns: list[tuple[str, str]]) -> str:
    """Render as Ollama does: the template once per turn, with the system text in the first."""
    made = ""
    for number, (prompt, response) in enumerate(turns):
        told = system if number == 0 else ""
        text = re.sub(
            r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}",
            lambda found, told=told: found[1] if told else found[2],
            template,
            flags=re.DOTALL,
        )
        for key, value in (("System", told), ("Prompt", prompt), ("Response", response)):
            cut = text.index("{{ .Response }}") if key == "Response" and not value else len(text)
            text = text[:cut].replace(f"{{{{ .{key} }}}}", value)
        made += text
    return made


@pytest.mark.parametrize("name", ["gemma", "chatml", "llama3", "mistral", "plain"])
def test_ollamas_template_renders_the_same_text_as_ours(name, tokenizer):
    ours = copy.deepcopy(tokenizer)
    controls, template = TEMPLATES[name]
    ours.add_special_tokens(
        {"additional_special_tokens": [*controls, "<bos>"]}, replace_extra_special_tokens=False
    )
    ours.bos_token = "<bos>"
    ours.chat_template = template
    told = modelfile(ours)
    assert told is not None and told.startswith("FROM ./merged.gguf\n")
    assert told.endswith("PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n")
    written = re.search(r'TEMPLATE """(.*)"""', told, re.DOTALL)
    assert written
    asked = [{"role": "user", "content": "Habari?"}]
    later = [*asked, {"role": "assistant", "content": "Njema."}, {"role": "user", "content": "Wapi?"}]
    system = [{"role": "system", "content": "Jibu."}, *later]
    for messages, text in (
        (asked, rendered(written[1], "", [("Habari?", "")])),
        (later, rendered(written[1], "", [("Habari?", "Njema."), ("Wapi?", "")])),
        (system, rendered(written[1], "Jibu.", [("Habari?", "Njema."), ("Wapi?", "")])),
    ):
        assert ours.decode(encode_chat(ours, messages)).removeprefix("<bos>") == text


def test_a_template_that_ollama_cannot_express_has_no_modelfile(tokenizer):
    """This template numbers its turns."""
    ours = copy.deepcopy(tokenizer)
    ours.chat_template = (
        "{%- for message in messages -%}{{- loop.index ~ message['content'] + '<|end|>' -}}{%- endfor -%}"
    )
    assert modelfile(ours) is None


def test_llama_cpp_gives_the_same_logits(run, tmp_path):
    """They are compared after a prompt, with each language's adapter and without any."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    written = export_gguf(run, ["sw", "ru"], tmp_path / "out", ["f32"])
    adapters = run.student(run.reference_model(), trained=True)
    for code in (None, "sw", "ru"):
        lora = str(written.languages[code] / "adapter.gguf") if code else None
        engine = llama_cpp.Llama(
            str(written.models["f32"]), lora_path=lora, n_ctx=64, n_threads=1, logits_all=True, verbose=False
        )
        engine.eval(PROMPT)
        found = torch.tensor(np.array(engine.scores[: len(PROMPT)]))
        engine.close()
        with adapters.on([code]) if code else without(adapters) as student:
            assert torch.allclose(found, logits(student), atol=2e-2), code


@contextmanager
def without(adapters):
    yield adapters.model


def test_llama_cpp_quantises_to_four_bits(run, tmp_path):
    """gguf can read the file, it is smaller than the 8-bit one, and no intermediate file is left."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    made = export_gguf(run, ["sw"], tmp_path / "out", ["q4_k_m", "q8_0"]).models
    four, eight = GGUFReader(made["q4_k_m"]), GGUFReader(made["q8_0"])
    assert four.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert {t.name for t in four.tensors} == {t.name for t in eight.tensors}
    assert made["q4_k_m"].stat().st_size < made["q8_0"].stat().st_size
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "sw",
        "tuned-q4_k_m.gguf",
        "tuned-q8_0.gguf",
    ]
