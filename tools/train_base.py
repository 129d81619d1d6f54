"""Train the demo's base model: `python -m tools.train_base --data-root ../shared/data OUT`.

Flow: documents → byte-level BPE → packed blocks → a small Qwen3 → plain Hugging Face files.
Every step's text depends only on the seed and the step, so a killed run resumes exactly.
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.data.demo.split import events_of
from isogloss.files import replacing
from isogloss.model.load import pad_id
from tools import base_text
from tools.exercises import KINDS, PARTS, Segment, exercise

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
VOCABULARY = 12_288
BLOCK = 256
EXERCISE_ROWS = 0.75
"""Share of rows with exercises, where only the answers have a loss."""
ANSWERS = 768
"""Maximum answer tokens in the loss per step."""
PROSE, PRACTICE = 0.3, 0.05
"""Loss weight of prose relative to answers, and its weight during practice. Most of the prose loss is
irreducible and would drown the small signal in answers about comparing; with no weight, prose is forgotten.
"""
IGNORED = -100


def train_tokenizer(real: base_text.Real, seed: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the same kinds of text, with the same number of sentences per language."""
    rng = random.Random(seed)

    def sentences() -> list[str]:
        texts: list[str] = []
        for code in LANGUAGES:
            rows = [real.rows[i][code] for i in real.by_language[code]]
            # Sampled with replacement, so that small languages count as much: all scripts should cost alike.
            texts.extend(rng.choices(rows, k=9_000))
            texts.extend(phrases(code).event(event) for event in rng.sample(events_of("train"), 3_000))
            texts.extend(phrases(code).opinion(opinion) for opinion in base_text.opinions())
        return texts

    tokenizer = Tokenizer(models.BPE())
    # A word keeps its leading space; digits are split; Indic and Thai vowel signs stay with their letters.
    pattern = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens={t.strip("<|>"): t for t in SPECIAL if t not in ("<|end|>", "<|pad|>")},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return a randomly initialised model of eight million parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),  # special tokens have the first IDs
        pad_token_id=SPECIAL.index("<|pad|>"),
    )
    config._attn_implementation = "eager"  # faster for short rows on a CPU
    return Qwen3ForCausalLM(config)


@dataclass
class Step:
    """Batch of one optimiser step: rows of prose, then rows of exercises.

    Attributes:
        ids: Token IDs (rows, `BLOCK`).
        mask: Additive causal attention mask, block-diagonal: a document only attends to itself.
        prose: Next-token labels of the prose rows, for all positions but the last; `IGNORED` for padding.
        at: Positions in the flattened IDs that precede an answer's token, `ANSWERS` of them.
        answers: Labels at these positions, padded with `IGNORED`.
        counts: Loss weights of these labels.
    """

    ids: Tensor
    mask: Tensor
    prose: Tensor
    at: Tensor
    answers: Tensor
    counts: Tensor


class Packed:
    """Packs whole documents into blocks of `BLOCK` tokens; step n is deterministic."""

    def __init__(
        self,
        real: base_text.Real,
        tokenizer: PreTrainedTokenizerFast,
        rows: int,
        seed: int,
        drill: str = "",
        drilled: int = 0,
    ):
        """
        Args:
            drill: The only kind of exercise in the first steps: some kinds are learnt only with many examples
                at a time.
            drilled: Number of these steps.
        """
        self.real, self.tokenizer, self.seed, self.drill, self.drilled = real, tokenizer, seed, drill, drilled
        self.exercises = round(rows * EXERCISE_ROWS)
        self.prose = rows - self.exercises
        self.end: Any = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def step(self, number: int) -> Step:
        rng = random.Random(f"{self.seed}/{number}")
        prose = ([Segment(text, 1.0)] for text in base_text.prose(self.real, rng))
        told, _, texts = self._blocks(prose, self.prose)
        exercises = base_text.exercises(rng, kind=self.drill if number < self.drilled else "")
        solved, answered, problems = self._blocks(exercises, self.exercises)
        followed = told.masked_fill(told.eq(pad_id(self.tokenizer)), IGNORED)[:, 1:]
        rows, columns = answered[:, 1:].nonzero(as_tuple=True)
        keep = sorted(rng.sample(range(len(rows)), min(len(rows), ANSWERS)))
        at, answers = torch.zeros(ANSWERS, dtype=torch.long), torch.full((ANSWERS,), IGNORED)
        counts = torch.zeros(ANSWERS)
        at[: len(keep)] = ((rows + self.prose) * BLOCK + columns)[keep]
        answers[: len(keep)] = solved[rows, columns + 1][keep]
        counts[: len(keep)] = answered[rows, columns + 1][keep]
        document = torch.cat([texts, problems])
        seen = (document[:, None] == document[:, :, None]).tril()[:, None]
        mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -1e4)
        return Step(torch.cat([told, solved]), mask, followed, at, answers, counts)

    def _blocks(self, documents: Iterator[list[Segment]], rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return token IDs, their loss weights as answers, and the index of their document in the block."""
        blocks: list[list[tuple[int, float]]] = [[] for _ in range(rows)]
        misses = 0
        while misses < rows:  # first fit without splitting: half a document teaches no comparison
            some = list(islice(documents, 32))
            encoded = iter(
                self.tokenizer([s.text for d in some for s in d], add_special_tokens=False)["input_ids"]
            )
            for document in some:
                ids = [(i, segment.counts) for segment in document for i in next(encoded)]
                room = next((b for b in blocks if len(b) + len(ids) < BLOCK), None)
                if room is None:
                    misses += 1
                else:
                    room.extend((*ids, (self.end, 0.0)))
        padded = [b + [(self.tokenizer.pad_token_id, 0.0)] * (BLOCK - len(b)) for b in blocks]
        ids = torch.tensor([[i for i, _ in block] for block in padded])
        ends = (ids == self.end).long()
        return ids, torch.tensor([[a for _, a in block] for block in padded]), ends.cumsum(1) - ends


def optimisers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Return the learning rate factor: 100 warm-up steps, constant, linear to zero over the last 60 %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.6 * steps))


@torch.no_grad()
def retrieval(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, layer: int = 4, n: int = 120
) -> dict[str, float]:
    """Return retrieval accuracy by language on dev sentences: mean pooling, cosine, both directions."""
    said = random.Random(0).sample(events_of("dev"), n)

    def embed(code: str) -> Tensor:
        batch = tokenizer(
            [phrases(code).event(e) for e in said], return_tensors="pt", padding=True, padding_side="right"
        )
        hidden = model(**batch, output_hidden_states=True, use_cache=False).hidden_states[layer].float()
        mask = batch["attention_mask"][..., None]
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    english, truth, scores = embed("en"), torch.arange(n), {}
    for code in LANGUAGES[1:]:
        similar = english @ embed(code).T
        hits = (similar.argmax(0) == truth).float().mean() + (similar.argmax(1) == truth).float().mean()
        scores[code] = hits.item() / 2
    return scores


@torch.no_grad()
def solved(model: nn.Module, tokenizer: PreTrainedTokenizerFast, n: int = 24) -> dict[str, dict[str, float]]:
    """Return the share of answers on dev meanings with every token right, by language and kind."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    shares: dict[str, dict[str, float]] = {}
    for code, kind in product(("en", "es", "hi", "sw"), KINDS):
        rng, hits = random.Random(f"{code}/{kind}"), []
        for _ in range(n):
            segments = exercise(
                [code], rng, autonyms=base_text.AUTONYMS, split="dev", kind=kind, explained=0.0
            )
            ids, places = [end], []
            texts = tokenizer([s.text for s in segments], add_special_tokens=False)["input_ids"]
            for segment, text in zip(segments, texts, strict=True):
                if segment.counts:
                    places.append(range(len(ids), len(ids) + len(text)))
                ids.extend(text)
            said = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
            hits.extend(all(said[i - 1] == ids[i] for i in place) for place in places)
        shares.setdefault(code, {})[kind] = round(sum(hits) / len(hits), 2)
    return shares


@torch.no_grad()
def bits_per_byte(model: nn.Module, tokenizer: PreTrainedTokenizerFast, n: int = 100) -> dict[str, float]:
    """Return bits per UTF-8 byte of unseen demo sentences, by language."""
    said, scores = random.Random(1).sample(events_of("dev"), n), {}
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for code in LANGUAGES:
        nats = size = 0.0
        for event in said:
            text = phrases(code).event(event)
            ids = torch.tensor([[end, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
            nats += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1)
            size += len(text.encode())
        scores[code] = nats / size / math.log(2)
    return scores


def model_card(
    command: str, tokens: int, losses: list[float], bits: dict[str, float], found: dict[str, float]
) -> str:
    """Return the model's README: data, licence, training tokens and results."""
    rows = "\n".join(
        f"| {code} | {base_text.WEIGHTS[code]} | {bits[code]:.2f} | {100 * found[code]:.0f} |"
        if code in found
        else f"| {code} | {base_text.WEIGHTS[code]} | {bits[code]:.2f} | |"
        for code in LANGUAGES
    )
    template = Path(__file__).with_name("card.md").read_text("utf-8")
    return template.format(
        command=command,
        tokens=f"{tokens / 1e6:.1f}",
        loss=f"{sum(losses) / len(losses):.2f}",
        vocabulary=f"{VOCABULARY:,}",
        rows=rows,
    )


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the model and its checkpoints.")],
    data_root: Annotated[Path, typer.Option(help="Folder of the real datasets.")],
    steps: Annotated[int, typer.Option(help="Total number of optimiser steps.")] = 1_800,
    rows: Annotated[int, typer.Option(help="Blocks of 256 tokens per step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: int = 0,
    drill: Annotated[str, typer.Option(help="Only kind of exercise in the first steps, such as who.")] = "",
    drilled: Annotated[int, typer.Option(help="Number of first steps with --drill.")] = 0,
    practice: Annotated[int, typer.Option(help="Number of first steps with a low weight of prose.")] = 0,
    start: Annotated[
        Path | None,
        typer.Option(help="Folder of a model or a stopped training to start from; default: random weights."),
    ] = None,
    stop_after: Annotated[
        int, typer.Option(help="Stop at this step with a checkpoint; 0: run to the end.")
    ] = 0,
) -> None:
    """Train, or resume from the last checkpoint."""
    if drill and drill not in PARTS:
        raise typer.BadParameter(f"--drill {drill}: unknown; choose from {', '.join(PARTS)}")
    out.mkdir(parents=True, exist_ok=True)
    real = base_text.load_real(data_root)
    known = out if (out / "tokenizer.json").exists() else start
    tokenizer = PreTrainedTokenizerFast.from_pretrained(known) if known else train_tokenizer(real, seed)
    tokenizer.save_pretrained(out)
    model, blocks = new_model(tokenizer, seed), Packed(real, tokenizer, rows, seed, drill, drilled)
    if start and (start / "checkpoint.pt").exists():
        model.load_state_dict(torch.load(start / "checkpoint.pt", weights_only=True)["model"])
    elif start:
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict())
    optims, first, saved = optimisers(model, lr), 0, out / "checkpoint.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, inner in zip(optims, state["optimisers"], strict=True):
            optim.load_state_dict(inner)
        first = state["step"]

    @torch.compile
    def step_losses(step: Step) -> Tensor:
        """Return the mean loss of prose and the weighted mean loss of answers, in nats per token."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(step.ids, step.mask, use_cache=False).last_hidden_state
            told = model.lm_head(hidden[: len(step.prose), :-1].flatten(0, 1))
            answered = model.lm_head(hidden.flatten(0, 1)[step.at])
        prose = nn.functional.cross_entropy(told.float(), step.prose.flatten(), ignore_index=IGNORED)
        nats = nn.functional.cross_entropy(
            answered.float(), step.answers, ignore_index=IGNORED, reduction="none"
        )
        return torch.stack([prose, (nats * step.counts).sum() / step.counts.sum()])

    started = time.monotonic()
    log = (out / "log.jsonl").open("a", buffering=1, encoding="utf-8")
    last = min(steps, stop_after or steps)
    for step in range(first, last):
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = lr * schedule(step, steps)
        losses = step_losses(blocks.step(step))
        (losses[0] * (PROSE if step >= practice else PRACTICE) + losses[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        done = step + 1
        if done % 20 == 0:
            seconds = (time.monotonic() - started) / (done - first)
            log.write(
                json.dumps(
                    {"step": done, "losses": [round(x, 4) for x in losses.tolist()], "s": round(seconds, 3)}
                )
                + "\n"
            )
        if done % 250 == 0 or done == last:
            model.eval()
            found = {k: round(v, 3) for k, v in retrieval(model, tokenizer).items()}
            log.write(
                json.dumps({"step": done, "retrieval": found, "solved": solved(model, tokenizer)}) + "\n"
            )
            model.train()
            state = {
                "model": model.state_dict(),
                "optimisers": [o.state_dict() for o in optims],
                "step": done,
            }
            with replacing(saved) as draft:
                torch.save(state, draft)
    if last == steps:
        model.eval()
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
        losses = [line["losses"][0] for line in lines if "losses" in line][-10:]
        command = f"--steps {steps} --rows {rows} --lr {lr} --seed {seed}"
        command += f" --drill {drill} --drilled {drilled}" if drill else ""
        command += f" --practice {practice}"
        card = model_card(
            command,
            steps * rows * BLOCK,
            losses,
            bits_per_byte(model, tokenizer),
            retrieval(model, tokenizer),
        )
        (out / "README.md").write_text(card, encoding="utf-8")
        nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
