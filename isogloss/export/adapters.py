"""Export a run's languages as PEFT adapters or merged models.

Every exported language is loaded again the way its user will load it, and compared with the run's own model.
An adapter exported as trained must match that model; the comparison is in float32, so that rounding cannot
hide a difference. Adapters of reduced rank and merged models cannot match exactly, so their differences are
reported.
"""

import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from isogloss.adapters.generate import complete, end_with_turn
from isogloss.adapters.lora import TreeLora
from isogloss.data.chat import encode_prompt
from isogloss.errors import DataError, RunError
from isogloss.files import locked, naming, read_json
from isogloss.languages import SOURCE, resolve
from isogloss.model.decoder import padded
from isogloss.model.load import load_model, notices_folder, pad_id, positions_of
from isogloss.notices import write_derived_card
from isogloss.pipeline.folder import Run
from isogloss.pipeline.provenance import learned_from

Kind = Literal["peft", "merged"]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for max_lora_rank, except 1."""
COMPARED, LAST, ANSWERED = 16, 4, 4
"""Number of instructions, and of their last tokens, whose logits are compared with the run's own model, and
of instructions whose answers are."""
FIXED = (
    "Name the capital of France.",
    "Translate into English: Guten Morgen!",
    "Is this review positive or negative? The food was cold and nobody apologised.",
    "Wake me up at seven tomorrow.",
)
"""Instructions that are compared if the run's data is not there."""
EXACT = 1e-4
"""Largest difference in logits at which an export counts as the run's own model."""


@dataclass(frozen=True)
class Exported:
    """One language's files.

    Attributes:
        rank: Rank of the adapter; 0 for a merged model.
        difference: Largest absolute difference in logits from the run's own model.
        divergence: Mean KL from the run's own model to this one, in nats per token.
        tokens: Number of prompt tokens in both measures.
        same: Number of greedy answers with the same tokens as the run's own model.
        asked: Number of greedy answers compared.
    """

    code: str
    folder: Path
    rank: int
    difference: float
    divergence: float
    tokens: int
    same: int
    asked: int

    @property
    def compared(self) -> str:
        """One-line summary of the comparison."""
        return (
            f"largest difference in logits {self.difference:.2g}, mean divergence {self.divergence:.2g} nats "
            f"per token, {self.same} of {self.asked} greedy answers identical"
        )


def export(
    run: Run, codes: Sequence[str], kind: Kind, folder: Path, max_rank: int | None = None
) -> list[Exported]:
    """Write each language to `folder/<code>`, whole or not at all.

    Args:
        codes: isogloss codes; a language without a leaf is exported with its family's or the root's adapter.
        kind: `peft` writes adapters for the run's tuned model in PEFT's format, `merged` whole models.
        max_rank: Refit adapters to this rank if their path has a larger one.

    Raises:
        RunError: A folder already exists, a language has no adapter, the run is not trained, or an adapter
            loaded again differs from the trained one.
    """
    with writing(run, folder, [folder / code for code in codes]):
        refuse_bare(run, codes)
        return _export(run, codes, kind, folder, max_rank)


@contextmanager
def writing(run: Run, folder: Path, paths: Iterable[Path]) -> Iterator[None]:
    """Guard an export: the run is locked if the folder is inside it, and write errors name the folder.

    Raises:
        RunError: One of the paths to be written already exists.
    """
    within = folder.resolve().is_relative_to(run.folder.resolve())
    with locked(run.folder) if within else nullcontext(), naming(folder):
        if there := next((path for path in paths if path.exists()), None):
            raise RunError(f"{there} already exists; choose another --out or remove it")
        yield


def _export(run: Run, codes: Sequence[str], kind: Kind, folder: Path, max_rank: int | None) -> list[Exported]:
    settings = GenerationConfig.from_pretrained(str(run.tuned))
    if end_with_turn(settings, run.tokenizer):  # earlier versions left it out
        settings.save_pretrained(str(run.tuned))
    adapters = run.student(_reference(run, kind), trained=True)
    prompts = {code: _prompts(run, code) for code in codes}
    wanted, answers, ranks = {}, {}, {}
    for code in codes:
        with adapters.on([code] * len(prompts[code])) as student:
            wanted[code] = _logits(student, prompts[code], run)
        answers[code] = _answers(adapters, prompts[code], run, code)
        part = folder / f"{code}.part"
        shutil.rmtree(part, ignore_errors=True)
        ranks[code] = adapters.export(code, part, str(run.tuned.resolve()), max_rank)
    del adapters, student  # one model in memory at a time
    exported: list[Exported] = []
    base: Any = _reference(run, kind) if kind != "merged" else None
    for code in codes:
        part = folder / f"{code}.part"
        if kind == "merged":
            _merge(run, part)
            loaded: Any = load_model(str(part), run.dtype)
        else:
            loaded = PeftModel.from_pretrained(base, str(part)).eval()
        difference, divergence = _compare(wanted[code], _logits(loaded, prompts[code], run))
        found = _plainly(loaded, prompts[code], run)
        if kind == "peft":
            base = loaded.unload()  # the next language's adapter uses the same weights
        one = Exported(
            code,
            folder / code,
            ranks[code] if kind != "merged" else 0,
            difference,
            divergence,
            len(wanted[code]),
            sum(map(list.__eq__, found, answers[code])),
            len(found),
        )
        _judge(run, one, part, _loss(run, kind, code, max_rank))
        _describe(run, one, kind, part)
        part.rename(one.folder)
        exported.append(one)
        run.reporter.say(f"{code}: {one.folder}, {one.compared}")
    return exported


def serving(run: Run, exported: Sequence[Exported]) -> str:
    """Return the vLLM command that serves all exported adapters, each as a model named by its code."""
    most = max(one.rank for one in exported)
    limit = next((rank for rank in RANKS if rank >= most), most)
    modules = [f"{one.code}={one.folder}" for one in exported]
    rank = ["--enable-lora", "--max-lora-rank", str(limit)]
    if len(exported) > 1:  # with the default of 1, languages would wait for each other
        rank += ["--max-loras", str(len(exported))]
    return shlex.join(["vllm", "serve", str(run.tuned), *rank, "--lora-modules", *modules])


def _reference(run: Run, kind: Kind) -> Any:
    """Load the tuned model; in float32 for PEFT exports, which are compared exactly."""
    dtype = torch.float32 if kind == "peft" else run.dtype
    return load_model(str(run.tuned), dtype).requires_grad_(False)


def _loss(run: Run, kind: Kind, code: str, max_rank: int | None) -> str:
    """Return why an export may differ from the run's own model; empty if it must match."""
    if max_rank is not None and max_rank < sum(node.rank for node in run.tree.path(code)):
        return f"rank {max_rank} is lower than the path's"
    if kind == "merged":
        return f"it is rounded to {str(run.dtype).removeprefix('torch.')}"
    return ""


def _judge(run: Run, one: Exported, part: Path, loss: str) -> None:
    """Raise if an export that must match does not; otherwise warn about differing answers."""
    if not loss and not (one.difference <= EXACT and one.same == one.asked):
        raise RunError(
            f"{one.code}: loaded again, the export differs from the run's own model: {one.compared}; allowed "
            f"are a difference of {EXACT} and no differing answer; it is left in {part}"
        )
    if one.same < one.asked:
        differ = one.asked - one.same
        run.reporter.say(f"Warning: {one.code}: {differ} of {one.asked} greedy answers differ; {loss}")


def _merge(run: Run, folder: Path) -> None:
    """Replace an adapter folder by the merged model; merges in float32 and rounds once."""
    exact = PeftModel.from_pretrained(load_model(str(run.tuned), torch.float32), str(folder))
    merged: Any = exact.merge_and_unload(safe_merge=True)
    shutil.rmtree(folder)
    merged.to(run.dtype).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)


def _prompts(run: Run, code: str) -> list[tuple[int, ...]]:
    """Return plain prompts in the language from the run's data; in English if it has none.

    Without the data, which a moved run may lack, they are `FIXED`.
    """
    try:
        turns = [example.turns for example in run.examples]
    except DataError as error:
        run.reporter.say_once(f"{error}; the export is compared on {len(FIXED)} fixed instructions")
        turns = []
    texts = [turn[code].instruction for turn in turns if code in turn]
    texts = texts or [turn[SOURCE].instruction for turn in turns] or list(FIXED)
    return [encode_prompt(run.tokenizer, text) for text in texts[:COMPARED]]


@torch.no_grad()
def _logits(model: Any, prompts: Sequence[Sequence[int]], run: Run) -> Float[Tensor, "tokens vocab"]:
    """Return the logits at the last tokens of every prompt: those of a vocabulary take a lot of memory."""
    ids, mask = padded(model, prompts, pad_id(run.tokenizer))
    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    from_end = mask.flip(1).cumsum(1).flip(1)
    return found[mask.bool() & (from_end <= LAST)].float().cpu()


def _answers(adapters: TreeLora, prompts: Sequence[Sequence[int]], run: Run, code: str) -> list[list[int]]:
    """Return the run's own greedy answers to the first prompts, one at a time."""
    how: dict[str, Any] = {"languages": [code], "adapters": adapters}
    how["max_new_tokens"] = run.config.evaluate.max_new_tokens
    return [
        complete(adapters.model, run.tokenizer, [prompt], **how)[0].tolist() for prompt in prompts[:ANSWERED]
    ]


@torch.no_grad()
def _plainly(model: Any, prompts: Sequence[Sequence[int]], run: Run) -> list[list[int]]:
    """Return an export's greedy answers as transformers generates them, with its own end tokens.

    One at a time: with PEFT, left padding shifts positions. Like ours, they end at the model's last position.
    """
    found, longest, most = [], run.config.evaluate.max_new_tokens, positions_of(model)
    for prompt in prompts[:ANSWERED]:
        ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=longest if most is None else min(longest, most - len(prompt)),
            pad_token_id=pad_id(run.tokenizer),
        )
        found.append(made[0, len(prompt) :].tolist())
    return found


def _compare(
    ours: Float[Tensor, "tokens vocab"], theirs: Float[Tensor, "tokens vocab"]
) -> tuple[float, float]:
    p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (ours - theirs).abs().max().item(), (p.exp() * (p - q)).sum(-1).mean().item()


FOUR_BIT = (
    "The run was trained and scored on weights in 4 bits. This export belongs to the weights before "
    "quantisation, on which answers and scores can differ."
)
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})
chat = [{{"role": "user", "content": "..."}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
model = {model}
answer = model.generate(input_ids=ids, max_new_tokens=64)[0, ids.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
"""Example code in a card that loads an adapter or model and generates an answer."""


def _describe(run: Run, one: Exported, kind: Kind, part: Path) -> None:
    """Write the README of an export: description, scores, loading code, and the base model's terms."""
    language, peft = resolve(one.code), kind == "peft"
    exact = " in float32" if peft else ""
    tuned, folder = str(run.tuned.resolve()), str(one.folder.resolve())
    load, imports = f"AutoModelForCausalLM.from_pretrained({(tuned if peft else folder)!r})", ""
    if peft:
        load, imports = f"PeftModel.from_pretrained({load}, {folder!r})", "from peft import PeftModel\n"
    usage = imports + LOAD.format(tokenizer=tuned if peft else folder, model=load)
    what = f"A LoRA adapter of rank {one.rank}" if peft else "A whole model"
    through = ""
    if one.code not in (*run.taught, SOURCE):
        through = f" The language was not trained; it uses the adapter of {run.tree.path(one.code)[-1].name}."
    lines = [
        f"# {language.name}, by isogloss",
        "",
        f"{what} that follows instructions in {language.name} ({language.autonym}); the model was tuned "
        f"on English instructions.{through}",
        "",
        f"Seed {run.config.seed}.",
        "",
        f"Data: {learned_from(run, one.code)}",
        "",
        f"Compared{exact} with the run's own model on {one.tokens} prompt tokens and {one.asked} "
        f"instructions: {one.compared}.",
        "",
        *([FOUR_BIT, ""] if run.config.four_bit else []),
        *_measured(run, one.code),
        "```python",
        usage,
        "```",
    ]
    front = (f"language: [{language.bcp47}]", *(["library_name: peft"] if peft else []))
    base = notices_folder(run.config.model)
    write_derived_card(
        part, run.config.model, base, "\n".join(lines), *front, "pipeline_tag: text-generation"
    )


def suites_of(run: Run) -> dict[str, Any]:
    """Return the run's scores by suite; empty before the evaluation."""
    file, remedy = run.folder / "scores.json", "remove it and run `isogloss evaluate` again"
    return read_json(file, "suites", remedy)["suites"] if file.exists() else {}


def _measured(run: Run, code: str) -> list[str]:
    """Return a table of the language's scores for each suite, with the suite's signature."""
    lines = []
    for name, suite in suites_of(run).items():
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


def refuse_bare(run: Run, codes: Sequence[str]) -> None:
    """Raise if a language's path has no adapter rows.

    Raises:
        RunError: A language has none.
    """
    if bare := [code for code in codes if not run.tree.rows(code)]:
        raise RunError(
            f"{bare[0]} has no adapter: its answers are those of the tuned model in {run.tuned}; leave it out"
        )
