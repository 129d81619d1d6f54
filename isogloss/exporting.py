"""A run's languages in forms that other programs load: PEFT adapters, or whole merged models.

Every exported language is loaded again as its user will load it and compared with the run's own model.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from isogloss.data.chat import encode_prompt, pad
from isogloss.errors import RunError
from isogloss.languages import SOURCE, resolve
from isogloss.model import load_model, model_folder, pad_id
from isogloss.pipeline import Run

Kind = Literal["peft", "merged"]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank, 1 aside."""
COMPARED = 16
"""Instructions on which an export is compared with the run's own model."""


@dataclass(frozen=True)
class Exported:
    """One language's files.

    Attributes:
        rank: Of the adapter; 0 for a merged model.
        difference: Largest absolute difference in logits from the run's own model.
        divergence: Mean KL from the run's own model to this one, in nats a token.
        tokens: Prompt tokens over which both were taken.
    """

    code: str
    folder: Path
    rank: int
    difference: float
    divergence: float
    tokens: int


def export(
    run: Run, codes: Sequence[str], kind: Kind, folder: Path, max_rank: int | None = None
) -> list[Exported]:
    """Write each language to `folder/<code>`, whole or not at all.

    Args:
        codes: Our codes; one without a leaf is exported as its family or the root answers for it.
        kind: `peft` writes LoRA adapters over the run's tuned model, `merged` whole models.
        max_rank: Refit adapters to this rank where their path has a larger one.

    Raises:
        RunError: A folder is there already, or the run is not trained.
    """
    if there := [code for code in codes if (folder / code).exists()]:
        raise RunError(f"{folder / there[0]} is there already; name another --out or remove it")
    carrier = run.student(run.reference_model(), trained=True)
    prompts = {code: _prompts(run, code) for code in codes}
    wanted, ranks = {}, {}
    for code in codes:
        with carrier.on([code] * len(prompts[code])) as student:
            wanted[code] = _logits(student, prompts[code], run)
        part = folder / f"{code}.part"
        shutil.rmtree(part, ignore_errors=True)
        ranks[code] = carrier.export(code, part, str(run.tuned.resolve()), max_rank)
    del carrier, student  # one model in memory at a time
    exported: list[Exported] = []
    base = run.reference_model() if kind == "peft" else None
    for code in codes:
        part = folder / f"{code}.part"
        if kind == "merged":
            _merge(run, part)
            loaded: Any = load_model(str(part), run.dtype)
        else:
            assert base is not None
            loaded = PeftModel.from_pretrained(base, str(part)).eval()
        difference, divergence = _compare(wanted[code], _logits(loaded, prompts[code], run))
        if kind == "peft":
            base = loaded.unload()  # the next language's adapter goes onto the same weights
        one = Exported(
            code,
            folder / code,
            ranks[code] if kind == "peft" else 0,
            difference,
            divergence,
            len(wanted[code]),
        )
        (part / "README.md").write_text(_card(run, one, kind), encoding="utf-8")
        part.rename(one.folder)
        exported.append(one)
        run.watcher.say(
            f"{code}: {one.folder}, largest difference in logits {difference:.2g}, "
            f"mean divergence {divergence:.2g} nats a token"
        )
    return exported


def serving(run: Run, exported: Sequence[Exported]) -> str:
    """The command by which vLLM serves all exported adapters at once, each as a model named by its code."""
    most = max(one.rank for one in exported)
    limit = next((rank for rank in RANKS if rank >= most), most)
    modules = " ".join(f"{one.code}={one.folder}" for one in exported)
    return f"vllm serve {run.tuned} --enable-lora --max-lora-rank {limit} --lora-modules {modules}"


def _merge(run: Run, folder: Path) -> None:
    """Replace an adapter by the whole model; the sum is taken in float32, then rounded once."""
    exact = PeftModel.from_pretrained(load_model(str(run.tuned), torch.float32), str(folder))
    merged: Any = exact.merge_and_unload(safe_merge=True)
    shutil.rmtree(folder)
    merged.to(run.dtype).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)


def _prompts(run: Run, code: str) -> list[tuple[int, ...]]:
    """Plain prompts in the language, from the run's own data; in English where it has none."""
    turns = [example.turns for example in run.examples]
    texts = [turn[code].instruction for turn in turns if code in turn]
    texts = texts or [turn[SOURCE].instruction for turn in turns]
    return [encode_prompt(run.tokenizer, text) for text in texts[:COMPARED]]


@torch.no_grad()
def _logits(model: Any, prompts: Sequence[Sequence[int]], run: Run) -> Float[Tensor, "tokens vocab"]:
    """Logits at every prompt token."""
    ids, mask = pad([list(prompt) for prompt in prompts], pad_id(run.tokenizer))
    device = next(model.parameters()).device
    found = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return found[mask.bool().to(device)].float().cpu()


def _compare(
    ours: Float[Tensor, "tokens vocab"], theirs: Float[Tensor, "tokens vocab"]
) -> tuple[float, float]:
    p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (ours - theirs).abs().max().item(), (p.exp() * (p - q)).sum(-1).mean().item()


def _card(run: Run, one: Exported, kind: Kind) -> str:
    """The README of an export: what it is, how well it does, and how it is loaded."""
    language = resolve(one.code)
    base, licence = run.config.model, _licence(run)
    load = (
        f'model = AutoModelForCausalLM.from_pretrained("{run.tuned.resolve()}")\n'
        f'model = PeftModel.from_pretrained(model, "{one.folder}")'
        if kind == "peft"
        else f'model = AutoModelForCausalLM.from_pretrained("{one.folder}")'
    )
    imports = "from transformers import AutoModelForCausalLM\n" + (
        "from peft import PeftModel\n" if kind == "peft" else ""
    )
    what = f"A LoRA adapter of rank {one.rank}" if kind == "peft" else "A whole model"
    taught = one.code in run.taught
    through = "" if taught else f" It was not taught; it answers through {run.tree.path(one.code)[-1].name}."
    return "\n".join(
        (
            "---",
            *([f"license: {licence}"] if licence else []),
            f"language: [{language.bcp47}]",
            *(["library_name: peft"] if kind == "peft" else []),
            "pipeline_tag: text-generation",
            "---",
            f"# {language.name}, by isogloss",
            "",
            f"{what} that has a model tuned on English instructions follow them in {language.name} "
            f"({language.autonym}).{through}",
            "",
            f"Base: {base}, tuned on English instructions of data type {run.config.data.type}; seed "
            f"{run.config.seed}. Licence: {licence or 'that of the base model and of the data'}.",
            "",
            f"Compared with the run's own model on {one.tokens} prompt tokens: largest difference in logits "
            f"{one.difference:.2g}, mean divergence {one.divergence:.2g} nats a token.",
            "",
            *_measured(run, one.code),
            "```python",
            imports + load,
            "```",
            "",
        )
    )


def _measured(run: Run, code: str) -> list[str]:
    """A table of the language's scores for each suite, with the suite's signature."""
    file = run.folder / "scores.json"
    suites = json.loads(file.read_text("utf-8"))["suites"] if file.exists() else {}
    lines = []
    for name, suite in suites.items():
        rows = [
            (
                measure,
                suite["before"].get(measure, {}).get("languages", {}).get(code),
                after["languages"][code],
            )
            for measure, after in suite["after"].items()
            if code in after.get("languages", {})
        ]
        if rows:
            lines += [f"Scores on {name}, in %: `{suite['signature']}`", "", "| measure | before | after |"]
            lines += ["| --- | --- | --- |"]
            lines += [f"| {measure} | {_percent(old)} | {_percent(new)} |" for measure, old, new in rows]
            lines.append("")
    return lines


def _percent(score: dict | None) -> str:
    return "" if score is None else f"{100 * score['value']:.1f}"


def _licence(run: Run) -> str:
    """What the base model's own card says; nothing where it has none."""
    card = Path(model_folder(run.config.model)) / "README.md"
    if not card.is_file():
        return ""
    found = [line for line in card.read_text("utf-8").split("\n")[:30] if line.startswith("license:")]
    return found[0].removeprefix("license:").strip() if found else ""
