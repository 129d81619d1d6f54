"""GGUF files of a run, for llama.cpp and Ollama: the tuned model, and each language as a LoRA over it.

The tokenizer and whatever else a GGUF file says of its model are those of the file that the base came from;
the weights, the chat template and the end of turn are the run's. The format's own conventions are kept here
and nowhere else: tensors by llama.cpp's names, Gemma's norms one higher, and for Llama's layout the two
halves of a head's rotary dimensions side by side. Vectors stay in float32, as llama.cpp wants them.
Flow: source file → metadata; tuned weights → one file a precision; a path as PEFT writes it → its LoRA file
and its Modelfile.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from isogloss import bases
from isogloss.data.chat import end_of_turn
from isogloss.errors import ConfigError, RunError
from isogloss.export.adapters import refuse_bare
from isogloss.export.modelfile import ADAPTER, MODELFILE, modelfile
from isogloss.files import locked, naming
from isogloss.languages import resolve
from isogloss.model.load import load_model, notices_folder
from isogloss.notices import carry, write_derived_card
from isogloss.pipeline.folder import Run
from isogloss.pipeline.provenance import learned_from

Precision = Literal["f32", "f16", "bf16", "q8_0", "q4_k_m"]
PRECISIONS: tuple[Precision, ...] = ("f16", "q8_0")
"""Written where none is named; the first is what the Modelfiles load."""
OURS = ("general.name", "general.file_type", "general.quantization_version", "general.architecture")
"""What a source file says of itself and not of its model."""
TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Layout:
    """How a kind of model lies in a GGUF file.

    Attributes:
        architecture: GGUF's name.
        norm: What is added to the weights of norms.
        paired: In the rows of queries and keys, rotary dimensions i and i + half lie side by side.
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
"""By transformers' `model_type`."""


@dataclass(frozen=True)
class Written:
    """The tuned model's files by precision, and each language's folder."""

    models: dict[Precision, Path]
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
        codes: Our codes; one without a leaf is exported as its family or the root answers for it.
        precisions: Of the tuned model; adapters are in float32.
        max_rank: As for PEFT's adapters.

    Raises:
        ConfigError: A precision is not known.
        RunError: The base came from no GGUF file or has a layout not known here, a number does not fit, what
            quantises is not installed, or a file is there already.
    """
    chosen: tuple[Precision, ...] = tuple(dict.fromkeys(_known(one) for one in precisions))
    within = folder.resolve().is_relative_to(run.folder.resolve())
    with locked(run.folder) if within else nullcontext(), naming(folder):
        return _export(run, codes, folder, chosen, max_rank)


def _known(precision: str) -> Precision:
    for known in get_args(Precision):
        if precision == known:
            return known
    raise ConfigError(f"--precision: {precision!r} is none of {', '.join(get_args(Precision))}")


def _export(
    run: Run, codes: Sequence[str], folder: Path, precisions: Sequence[Precision], max_rank: int | None
) -> Written:
    config = json.loads((run.tuned / "config.json").read_text("utf-8"))
    layout = _refuse(run, config, precisions)
    written = Written(
        {precision: folder / f"tuned-{precision}.gguf" for precision in precisions},
        {code: folder / code for code in codes},
    )
    for path in (*written.languages.values(), *written.models.values()):
        if path.exists():
            raise RunError(f"{path} is there already; name another --out or remove it")
    refuse_bare(run, codes)
    model = load_model(str(run.tuned), torch.float32)
    names = _names(layout, config["num_hidden_layers"])
    tensors = [
        (names(name), _laid_out(weight, name, layout, config)) for name, weight in _weights(model, config)
    ]
    adapters = run.student(model, trained=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as work:
        part = Path(work)
        made = _metadata(run, layout, len(dict(tensors)["token_embd.weight"]), part)
        for precision, file in written.models.items():
            with run.reporter.waiting(f"Writing {file}"):
                _write_model(part / file.name, layout, made, tensors, precision, part)
        for code in codes:
            (into := part / code).mkdir()
            plain = part / f"{code}.peft"
            adapters.export(code, plain, str(run.tuned.resolve()), max_rank)
            write_adapter(plain, into / ADAPTER, layout, config, f"{_base(run)} {code}")
            _describe(run, code, into, written.models[precisions[0]].name)
        for path in (*written.models.values(), *written.languages.values()):
            (part / path.name).rename(path)
    carry(notices_folder(run.config.model), folder)
    return written


def _refuse(run: Run, config: dict[str, Any], precisions: Sequence[Precision]) -> Layout:
    kind = config["model_type"]
    if kind not in LAYOUTS:
        raise RunError(
            f"--format gguf: how a model of type {kind} lies in a GGUF file is not known here, only of "
            f"{', '.join(LAYOUTS)}; `--format merged` writes a folder that llama.cpp's own converter may take"
        )
    name = run.config.model
    if name not in bases.PACKAGED and not name.endswith(bases.SUFFIX):
        raise RunError(
            f"--format gguf: {name} came from no GGUF file whose tokenizer could be taken; "
            "`--format merged` writes a folder that llama.cpp's own converter may take"
        )
    if fault := bases.unavailable(name):
        raise RunError(f"--format gguf: {fault}")
    if "q4_k_m" in precisions and _llama_cpp() is None:
        raise RunError("--precision q4_k_m: llama.cpp quantises; pip install llama-cpp-python")
    return LAYOUTS[kind]


def _base(run: Run) -> str:
    """The base's name, without where its file lies."""
    return Path(run.config.model).name.removesuffix(bases.SUFFIX)


def _llama_cpp() -> Any:
    """llama.cpp's library, where it is installed."""
    return import_module("llama_cpp") if find_spec("llama_cpp") else None


def _names(layout: Layout, layers: int) -> Any:
    """From transformers' names of parameters to llama.cpp's."""
    import gguf

    (architecture,) = (a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    known = gguf.get_tensor_name_map(architecture, layers)

    def named(name: str) -> str:
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RunError(f"--format gguf: {layout.architecture} has no place for {name}")
        return found

    return named


def _weights(model: Any, config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by name; a head that is the embedding itself is not written twice."""
    for name, weight in model.state_dict().items():
        if not (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            yield name, weight


def _laid_out(weight: torch.Tensor, name: str, layout: Layout, config: dict[str, Any]) -> np.ndarray:
    """A parameter, or the output side of an adapter over it, as a GGUF file has it; in float32."""
    made = weight.detach().float().cpu().numpy()
    if layout.norm and "norm" in name:
        made = made + np.float32(layout.norm)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
    for part, count in heads.items():
        if layout.paired and f".{part}." in name:
            rows = made.reshape(count or config["num_attention_heads"], 2, -1, *made.shape[1:])
            made = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(made.shape)
    return made


def _metadata(run: Run, layout: Layout, rows: int, work: Path) -> list[tuple[str, Any, Any, Any]]:
    """Keys, values and types of the base's own GGUF file, with the run's chat template and end of turn."""
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
            f"--format gguf: {file.name} holds {architecture}, the run's model {layout.architecture}"
        )
    if tokens != rows:
        raise RunError(f"--format gguf: {file.name} has {tokens} tokens, the tuned model embeds {rows}")
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
    metadata: Sequence[tuple[str, Any, Any, Any]],
    tensors: Sequence[tuple[str, np.ndarray]],
    precision: Precision,
    work: Path,
) -> None:
    import gguf

    if precision == "q4_k_m":
        _quantise(work, file, layout, metadata, tensors)
        return
    kinds = {"f32": "ALL_F32"}
    writer = gguf.GGUFWriter(file, layout.architecture)
    for key, value, kind, of in metadata:
        writer.add_key_value(key, value, kind, of)
    writer.add_file_type(gguf.LlamaFileType[kinds.get(precision, f"MOSTLY_{precision.upper()}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors:
        kind = gguf.GGMLQuantizationType[precision.upper()]
        if tensor.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F16  # as llama.cpp does with rows that are no whole blocks
        writer.add_tensor(name, _rounded(tensor, kind, name), raw_dtype=kind)
    _close(writer)


def _rounded(tensor: np.ndarray, kind: Any, name: str) -> np.ndarray:
    import gguf

    if kind == gguf.GGMLQuantizationType.F16 and np.abs(tensor).max() > np.finfo(np.float16).max:
        raise RunError(f"--precision f16: {name} has numbers that float16 does not hold; take bf16 or f32")
    return gguf.quants.quantize(tensor, kind)


def _quantise(
    work: Path,
    file: Path,
    layout: Layout,
    metadata: Sequence[tuple[str, Any, Any, Any]],
    tensors: Sequence[tuple[str, np.ndarray]],
) -> None:
    """Four bits a weight, by llama.cpp itself, from float32."""
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
    """A PEFT LoRA as llama.cpp's: `<tensor>.lora_a` of (rank, in) and `<tensor>.lora_b` of (out, rank).

    llama.cpp adds α/rank · B·A, with one α of the whole file and each pair's own rank; where PEFT scales a
    module otherwise (`alpha_pattern`, rank-stabilised), B is multiplied by what is missing.

    Args:
        peft: A folder that `PeftModel.from_pretrained` loads.
        config: Of the model that it adapts.

    Raises:
        RunError: It is no plain LoRA.
    """
    import gguf

    settings: Any = LoraConfig.from_pretrained(str(peft))
    state = load_file(peft / "adapter_model.safetensors")
    if settings.use_dora or settings.bias != "none" or not all(".lora_" in key for key in state):
        raise RunError(
            "--format gguf: llama.cpp takes plain LoRA, without magnitudes, biases or whole modules"
        )
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
        writer.add_tensor(f"{target}.lora_b", up * np.float32(_missing(settings, module, len(down))))
    _close(writer)


def _missing(settings: LoraConfig, module: str, rank: int) -> float:
    """PEFT's scale of a module over α/rank."""
    alphas = settings.alpha_pattern or {}
    alpha = next((a for key, a in alphas.items() if module.endswith(key)), settings.lora_alpha)
    root = rank**0.5 if settings.use_rslora else 1.0
    return alpha / settings.lora_alpha * root


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(run: Run, code: str, folder: Path, model: str) -> None:
    """A language's Modelfile and card."""
    language = resolve(code)
    told = modelfile(run.tokenizer, f"../{model}")
    if told is None:
        run.reporter.say(
            f"Warning: {code}: Ollama cannot express the chat template; no {MODELFILE} is written"
        )
    else:
        (folder / MODELFILE).write_text(told, encoding="utf-8")
    what = [
        f"# {language.name}, by isogloss, for llama.cpp",
        "",
        f"A LoRA adapter in GGUF that has ../{model} follow English instructions in {language.name} "
        f"({language.autonym}):",
        "",
        "```",
        f"llama-server --model ../{model} --lora {ADAPTER}",
        *([f"ollama create {code} --file {MODELFILE}"] if told is not None else []),
        "```",
        "",
        f"Data: {learned_from(run, code)}",
    ]
    base = notices_folder(run.config.model)
    write_derived_card(folder, run.config.model, base, "\n".join(what))
