"""Export a run to GGUF for llama.cpp and Ollama: the tuned model, and each language as a LoRA on top of it.

The tokenizer and all other metadata come from the GGUF file of the base; the weights, the chat template and
the end of turn are the run's. All conventions of the format are implemented here: llama.cpp's tensor names,
1 added to Gemma's norm weights, and for Llama's layout the interleaved rotary dimensions of each head.
Vectors stay in float32, as llama.cpp requires.
Flow: source file → metadata; tuned weights → one file per precision; a path exported as PEFT → LoRA file and
Modelfile.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from isogloss import bases
from isogloss.data.chat import end_of_turn
from isogloss.errors import ConfigError, RunError
from isogloss.export.adapters import refuse_bare, writing
from isogloss.export.modelfile import ADAPTER, MERGED, MODELFILE, modelfile
from isogloss.languages import resolve
from isogloss.model.load import load_model, notices_folder
from isogloss.notices import carry, write_derived_card
from isogloss.pipeline.folder import Run
from isogloss.pipeline.provenance import learned_from

KNOWN = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
"""All precisions."""
PRECISIONS = ("f16", "q8_0")
"""Default precisions; cards name the first one."""
OURS = ("general.name", "general.file_type", "general.quantization_version", "general.architecture")
"""Metadata keys that describe the source file rather than the model; not copied."""
TEMPLATE = "tokenizer.chat_template"
Entry = tuple[str, Any, Any, Any]
"""Metadata: a key, its value, its type, and the type of its elements for arrays."""


@dataclass(frozen=True)
class Layout:
    """How a type of model is stored in a GGUF file.

    Attributes:
        architecture: GGUF's name of the architecture.
        norm: Constant added to norm weights.
        paired: Rotary dimensions i and i + half are adjacent in the rows of queries and keys.
    """

    architecture: str
    norm: float = 0.0
    paired: bool = False


LAYOUTS = {
    "gemma3_text": Layout("gemma3", norm=1.0),
    "llama": Layout("llama", paired=True),
    "mistral": Layout("llama", paired=True),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
}
"""Layouts by transformers' `model_type`."""


@dataclass(frozen=True)
class Written:
    """The tuned model's files by precision, and each language's folder."""

    models: dict[str, Path]
    languages: dict[str, Path]


def export_gguf(
    run: Run,
    codes: Sequence[str],
    folder: Path,
    precisions: Sequence[str] = PRECISIONS,
    max_rank: int | None = None,
) -> Written:
    """Write `folder/tuned-<precision>.gguf`, and each language's LoRA and Modelfile to `folder/<code>`.

    Args:
        codes: isogloss codes; a language without a leaf is exported with its family's or the root's adapter.
        precisions: Precisions of the tuned model; adapters are in float32.
        max_rank: Refit adapters to this rank if their path has a larger one.

    Raises:
        ConfigError: A precision is unknown.
        RunError: The base did not come from a GGUF file or has an unsupported layout, a language has no
            adapter, a weight overflows float16, llama.cpp is missing for quantisation, or a file already
            exists.
    """
    if unknown := [one for one in precisions if one not in KNOWN]:
        raise ConfigError(f"--precision: {unknown[0]!r} is not one of {', '.join(KNOWN)}")
    config = json.loads((run.tuned / "config.json").read_text("utf-8"))
    layout = _refuse(run, config, precisions)
    written = Written(
        {precision: folder / f"tuned-{precision}.gguf" for precision in precisions},
        {code: folder / code for code in codes},
    )
    with writing(run, folder, [*written.languages.values(), *written.models.values()]):
        refuse_bare(run, codes)
        _export(run, config, layout, written, folder, max_rank)
    return written


def _export(
    run: Run, config: dict[str, Any], layout: Layout, written: Written, folder: Path, max_rank: int | None
) -> None:
    model = load_model(str(run.tuned), torch.float32)
    names = _names(layout, config["num_hidden_layers"])
    tensors = [
        (names(name), _laid_out(weight, name, layout, config))
        for name, weight in model.state_dict().items()
        if not (name == "lm_head.weight" and config.get("tie_word_embeddings"))
    ]
    adapters = run.student(model, trained=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as work:
        part = Path(work)
        made = _metadata(run, layout, len(dict(tensors)["token_embd.weight"]), part)
        for precision, file in written.models.items():
            with run.reporter.waiting(f"Writing {file}"):
                _write_model(part / file.name, layout, made, tensors, precision, part)
        first = next(iter(written.models.values()))
        for code in written.languages:
            (into := part / code).mkdir()
            plain = part / f"{code}.peft"
            adapters.export(code, plain, str(run.tuned.resolve()), max_rank)
            write_adapter(plain, into / ADAPTER, layout, config, f"{_base(run)} {code}")
            _describe(run, code, into, first.name)
        for path in (*written.models.values(), *written.languages.values()):
            (part / path.name).rename(path)
    carry(notices_folder(run.config.model), folder)


def _refuse(run: Run, config: dict[str, Any], precisions: Sequence[str]) -> Layout:
    kind = config["model_type"]
    if kind not in LAYOUTS:
        raise RunError(
            f"--format gguf: models of type {kind} are not supported, only {', '.join(LAYOUTS)}; "
            "`--format merged` writes a folder that llama.cpp's own converter may accept"
        )
    name = run.config.model
    if name not in bases.PACKAGED and not name.endswith(bases.SUFFIX):
        raise RunError(
            f"--format gguf: {name} did not come from a GGUF file, whose tokenizer would be copied; "
            "`--format merged` writes a folder that llama.cpp's own converter may accept"
        )
    if fault := bases.unavailable(name, converted=False):
        raise RunError(f"--format gguf: {fault}")
    if "q4_k_m" in precisions and _llama_cpp() is None:
        raise RunError("--precision q4_k_m: needs llama.cpp to quantise; pip install llama-cpp-python")
    return LAYOUTS[kind]


def _base(run: Run) -> str:
    """Return the base model's name, without the path of its file."""
    return Path(run.config.model).name.removesuffix(bases.SUFFIX)


def _llama_cpp() -> Any:
    """Import llama.cpp's Python bindings; None if not installed."""
    return import_module("llama_cpp") if find_spec("llama_cpp") else None


def _names(layout: Layout, layers: int) -> Callable[[str], str]:
    """Return a function that maps transformers' parameter names to llama.cpp's."""
    import gguf

    (architecture,) = (a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    known = gguf.get_tensor_name_map(architecture, layers)

    def named(name: str) -> str:
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RunError(f"--format gguf: {layout.architecture} has no tensor for {name}")
        return found

    return named


def _laid_out(weight: torch.Tensor, name: str, layout: Layout, config: dict[str, Any]) -> np.ndarray:
    """Convert a parameter, or the B matrix of its adapter, to the GGUF layout, in float32."""
    made = weight.detach().float().cpu().numpy()
    if layout.norm and "norm" in name:
        made = made + np.float32(layout.norm)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
    for part, count in heads.items():
        if layout.paired and f".{part}." in name:
            rows = made.reshape(count or config["num_attention_heads"], 2, -1, *made.shape[1:])
            made = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(made.shape)
    return made


def _metadata(run: Run, layout: Layout, rows: int, work: Path) -> list[Entry]:
    """Return the metadata of the base's GGUF file, with the run's chat template and end of turn."""
    import gguf

    file = bases.gguf_file(run.config.model, work)
    reader = gguf.GGUFReader(file)
    kept = [
        (key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and key not in (*OURS, TEMPLATE, gguf.Keys.Tokenizer.EOT_ID)
    ]
    architecture = reader.fields["general.architecture"].contents()
    tokens = next((len(value) for key, value, *_ in kept if key == gguf.Keys.Tokenizer.LIST), 0)
    del reader
    if file.parent == work:
        file.unlink()
    if architecture != layout.architecture:
        raise RunError(
            f"--format gguf: {file.name} contains {architecture}, the run's model is {layout.architecture}"
        )
    if tokens != rows:
        raise RunError(
            f"--format gguf: {file.name} has {tokens} tokens, but the tuned model has {rows} embeddings"
        )
    text, number = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
    end = run.tokenizer.convert_tokens_to_ids(end_of_turn(run.tokenizer))
    return [
        *kept,
        ("general.name", f"{_base(run)}, tuned by isogloss", text, None),
        (TEMPLATE, run.tokenizer.get_chat_template(), text, None),
        (gguf.Keys.Tokenizer.EOT_ID, end, number, None),
    ]


def _write_model(
    file: Path,
    layout: Layout,
    metadata: Sequence[Entry],
    tensors: Sequence[tuple[str, np.ndarray]],
    precision: str,
    work: Path,
) -> None:
    import gguf

    if precision == "q4_k_m":
        _quantise(work, file, layout, metadata, tensors)
        return
    writer = gguf.GGUFWriter(file, layout.architecture)
    for key, value, kind, of in metadata:
        writer.add_key_value(key, value, kind, of)
    whole = "ALL" if precision == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{whole}_{precision.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors:
        kind = gguf.GGMLQuantizationType[precision.upper()]
        if tensor.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F16  # as llama.cpp does if rows are not whole blocks
        writer.add_tensor(name, _rounded(tensor, kind, name), raw_dtype=kind)
    _close(writer)


def _rounded(tensor: np.ndarray, kind: Any, name: str) -> np.ndarray:
    import gguf

    if kind == gguf.GGMLQuantizationType.F16 and np.abs(tensor).max() > np.finfo(np.float16).max:
        raise RunError(f"--precision f16: {name} has values that overflow float16; use bf16 or f32")
    return gguf.quants.quantize(tensor, kind)


def _quantise(
    work: Path,
    file: Path,
    layout: Layout,
    metadata: Sequence[Entry],
    tensors: Sequence[tuple[str, np.ndarray]],
) -> None:
    """Quantise to 4 bits with llama.cpp, from a temporary float32 file."""
    llama_cpp = _llama_cpp()
    exact = work / "exact.gguf"
    _write_model(exact, layout, metadata, tensors, "f32", work)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    settings.nthread = torch.get_num_threads()
    failed = llama_cpp.llama_model_quantize(str(exact).encode(), str(file).encode(), settings)
    exact.unlink()
    if failed:
        raise RunError(f"--precision q4_k_m: llama.cpp could not quantise (code {failed})")


def write_adapter(peft: Path, file: Path, layout: Layout, config: dict[str, Any], name: str) -> None:
    """Write a path exported as PEFT in llama.cpp's format.

    Tensors are `<tensor>.lora_a` of shape (rank, in) and `<tensor>.lora_b` of shape (out, rank). llama.cpp
    adds α/rank · B·A, as PEFT does.

    Args:
        peft: Folder of the path.
        config: Config of the adapted model.
    """
    import gguf

    settings: Any = LoraConfig.from_pretrained(str(peft))
    state = load_file(peft / "adapter_model.safetensors")
    names = _names(layout, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings.lora_alpha))
    writer.add_name(name)
    for key, down in state.items():
        if "lora_A" not in key:
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = _laid_out(state[key.replace("lora_A", "lora_B")], f"{module}.weight", layout, config)
        target = names(f"{module}.weight")
        writer.add_tensor(f"{target}.lora_a", down.float().numpy())
        writer.add_tensor(f"{target}.lora_b", up)
    _close(writer)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(run: Run, code: str, folder: Path, model: str) -> None:
    """Write a language's Modelfile and card."""
    language = resolve(code)
    modelfile_text = modelfile(run.tokenizer)
    ollama = (
        f"llama-export-lora --model ../{model} --lora {ADAPTER} --output {MERGED}",
        f"ollama create {code} --file {MODELFILE}",
    )
    if modelfile_text is None:
        run.reporter.say(
            f"Warning: {code}: Ollama cannot express the chat template; no {MODELFILE} is written"
        )
    else:
        (folder / MODELFILE).write_text(modelfile_text, encoding="utf-8")
    what = [
        f"# {language.name}, by isogloss, for llama.cpp",
        "",
        f"A LoRA adapter in GGUF with which ../{model} follows instructions in {language.name} "
        f"({language.autonym}):",
        "",
        "```",
        f"llama-server --model ../{model} --lora {ADAPTER}",
        *(ollama if modelfile_text is not None else ()),
        "```",
        "",
        f"Data: {learned_from(run, code)}",
    ]
    base = notices_folder(run.config.model)
    write_derived_card(folder, run.config.model, base, "\n".join(what))
