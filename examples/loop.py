"""The method in one file, for one language: `python examples/loop.py RUN --language sw --steps 5`.

RUN is a run folder after `isogloss tune`. The teacher is its tuned model, which reads explanations (the node
texts), the English twin and the English answer before the instruction. The student is the same model with a
LoRA, and reads only the instruction. Both score the same response, and the student learns to match the
teacher's distribution. No tree, no cache, no Trainer: with the demo's settings and `teacher_view: prompt`,
`isogloss distill` does the same for all languages at once, and a test checks that the losses are equal. What
it adds (English replay, answer sets, the English view, learning rates by node) is left out here.
"""

import argparse
import os
import random
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from isogloss.adapters.tree import build_tree
from isogloss.config import Config, Distill, load_config
from isogloss.data.chat import encode_prompt, encode_prompt_with_text, encode_response
from isogloss.data.sources import parallel_examples
from isogloss.losses.functional import temperature_of
from isogloss.model.load import pick_dtype
from isogloss.model.standardise import Statistics, standardised, statistics_of
from isogloss.teacher.prompts import privileged_text
from isogloss.teacher.texts import node_texts
from isogloss.train.stage2 import target_perplexity


class Row(NamedTuple):
    """Token IDs of one example's prompts and response; all rows are different examples."""

    prompt: list[int]
    privileged: list[int]
    twin: list[int]
    response: list[int]
    asked: list[bool]  # mask of the prompt tokens that are the instruction itself, not BOS or template
    twin_asked: list[bool]


def read_rows(config: Config, tokenizer, language: str) -> list[Row]:
    """Return rows of the parallel examples that have a response in this language and in English."""
    texts, ranks = node_texts(config), {"root": 1, "family": 1, "language": 1}
    path = build_tree([language], ranks=ranks).path(language)  # for the texts of root, family and language
    data_root = config.data_root or os.environ.get("ISOGLOSS_DATA")
    rows = []
    for example in parallel_examples(config, Path(data_root) if data_root else None, [language]):
        turn, twin = example.turns.get(language), example.turns["en"]
        if turn is None or turn.response is None or twin.response is None:
            continue
        system = privileged_text(texts, path, example.task, twin)
        rows.append(
            Row(
                prompt=list(encode_prompt(tokenizer, turn.instruction)),
                privileged=list(encode_prompt(tokenizer, turn.instruction, system)),
                twin=list(encode_prompt(tokenizer, twin.instruction)),
                response=list(encode_response(tokenizer, turn.response)),
                asked=list(encode_prompt_with_text(tokenizer, turn.instruction)[1]),
                twin_asked=list(encode_prompt_with_text(tokenizer, twin.instruction)[1]),
            )
        )
    return rows[: config.languages.amount(language)]


def order_of(rows: int, draws: int, seed: int) -> list[int]:
    """Return row indices in random order; every row comes once before any comes again."""
    rng, order = random.Random(seed), []
    while len(order) < draws:
        order += rng.sample(range(rows), rows)
    return order[:draws]


def read(
    model, prompts: list[list[int]], responses: list[list[int]], layer: int, asked: list[list[bool]]
) -> tuple[Tensor, Tensor]:
    """Return the logits of every response token, and every instruction's mean hidden state after a layer."""
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, texts))
    # Padding is on the right and masked, so any ID will do.
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=model.device)
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts], device=model.device)
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    # The token at t is predicted from t - 1, so a response's logits start at the prompt's last position.
    spans = [slice(len(p) - 1, len(p) - 1 + len(r)) for p, r in zip(prompts, responses, strict=True)]
    logits = torch.cat([row[span] for row, span in zip(out.logits, spans, strict=True)])
    states = out.hidden_states[layer].float()
    own = [torch.tensor(one, device=model.device) for one in asked]
    pooled = torch.stack([row[: len(one)][one].mean(0) for row, one in zip(states, own, strict=True)])
    return logits.float(), pooled


def losses_of(
    model,
    rows: list[Row],
    own: list[int],
    twins: Tensor,
    english: Statistics,
    tau: float,
    layer: int,
    settings: Distill,
) -> dict[str, Tensor]:
    """Return divergence and cross-entropy as means over response tokens, similarity as a mean over rows.

    `twins[own[i]]` is the standardised state of row i's English twin. Row i, standardised by the same
    statistics, should be as similar to each twin as its own twin is.
    """
    responses, asked = [row.response for row in rows], [row.asked for row in rows]
    with torch.no_grad(), model.disable_adapter():
        teacher, _ = read(model, [row.privileged for row in rows], responses, layer, asked)
    student, pooled = read(model, [row.prompt for row in rows], responses, layer, asked)

    said = torch.tensor([token for response in responses for token in response], device=model.device)
    ce = F.cross_entropy(student, said)

    p, q = ((logits / settings.temperature).log_softmax(-1) for logits in (teacher, student))
    kl = (p.exp() * (p - q)).sum(-1).mean() * settings.temperature**2  # KL(teacher ‖ student)

    ours, every = F.normalize(standardised(pooled, english), dim=-1), F.normalize(twins, dim=-1)
    mine = every[own]
    pairs = ((mine @ every.T, ours @ every.T), (mine @ mine.T, mine @ ours.T))  # target, prediction
    p, q = zip(*(((a / tau).log_softmax(-1), (b / tau).log_softmax(-1)) for a, b in pairs), strict=True)
    similarity = sum((a.exp() * (a - b)).sum(-1).mean() for a, b in zip(p, q, strict=True)) / 2
    return {"ce": ce, "kl": kl, "similarity": similarity}


def distill(run: Path, language: str, steps: int) -> list[dict[str, float]]:
    """Train the adapter of one language and return the losses of every step."""
    config = load_config(run / "config.yaml")
    settings, adapter = config.distill, config.distill.adapter
    tokenizer = AutoTokenizer.from_pretrained(run / "tuned")
    model = AutoModelForCausalLM.from_pretrained(run / "tuned", dtype=pick_dtype(config.dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # type: ignore[arg-type]  # transformers wraps the method
    rows = read_rows(config, tokenizer, language)
    if not rows:
        raise SystemExit(f"no item of the run's data has a response in {language}; choose another language")
    batch = min(settings.batch_size, len(rows))  # no row twice in a step
    order = order_of(len(rows), steps * batch, config.seed)

    late = max(1, 2 * model.config.num_hidden_layers // 3)
    rank = adapter.ranks.root + adapter.ranks.family + adapter.ranks.language
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank * adapter.scaling,  # type: ignore[arg-type]  # PEFT accepts floats
        target_modules=list(adapter.target_modules),
        layers_to_transform=list(range(adapter.layers or late)),
        task_type="CAUSAL_LM",
    )
    student = get_peft_model(model, lora)
    learning = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        learning,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=0.0,
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, int(steps * settings.warmup_ratio + 1e-9), steps)

    layer = settings.similarity_layer or late
    with torch.no_grad(), student.disable_adapter():  # the English twins are fixed
        twins = torch.cat([read(student, [row.twin], [[]], layer, [row.twin_asked])[1] for row in rows])
    statistics = statistics_of(twins)
    twins = standardised(twins, statistics)
    # By default, the target spreads over ten twins on average.
    tau = settings.similarity_temperature or temperature_of(twins, target_perplexity(len(rows)))

    curve = []
    for step in range(steps):
        own = order[step * batch : (step + 1) * batch]
        parts = losses_of(
            student, [rows[number] for number in own], own, twins, statistics, tau, layer, settings
        )
        decay = max(0.0, 1 - step / steps / settings.similarity_decay) if settings.similarity_decay else 1.0
        loss = (
            settings.kl_weight * parts["kl"]
            + settings.ce_weight * parts["ce"]
            + settings.similarity_weight * decay * parts["similarity"]
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, settings.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        curve.append({"loss": loss.item(), **{name: part.item() for name, part in parts.items()}})
        print(f"step {step + 1}: " + "  ".join(f"{name} {value:.4f}" for name, value in curve[-1].items()))
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil a run's tuned model into one language.")
    parser.add_argument("run", type=Path, help="a run folder with tuned/ and config.yaml")
    parser.add_argument("--language", default="sw", help="language code, as in isogloss")
    parser.add_argument("--steps", type=int, default=5, help="number of optimiser steps")
    asked = parser.parse_args()
    distill(asked.run, asked.language, asked.steps)
