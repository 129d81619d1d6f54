"""Error of top-k compression (k likeliest tokens plus the remaining mass) of the divergence and its gradient.

    python benchmarks/topk_error.py runs/demo/tuned --out benchmarks/topk_error.json

Uses parallel rows of the embedded instruction set, as in stage 2: the model is its own teacher, prompted with
node texts, the English twin and its answer; the student only gets the instruction. Per divergence and k, with
the cache's packing: nats per token and the error relative to the dense value, and the norm of the error of
the gradient with respect to the student's hidden states relative to the dense gradient's norm. `exact` is
without packing, so the difference is the cost of four bytes per pair. `hidden` is the other kind of signal,
hidden states in the dtype of the cache, compared with float32.
"""

import argparse
from pathlib import Path

import torch
from machine import about, put
from torch import Tensor

from isogloss.adapters.tree import build_tree
from isogloss.config import load_config
from isogloss.data.chat import pad, response_positions
from isogloss.data.sources import parallel_examples
from isogloss.languages import SOURCE
from isogloss.losses.functional import Kept
from isogloss.losses.fused import Divergence, Head, frozen_head, scored, token_log_probs
from isogloss.losses.topk import TopK, pack, unpack
from isogloss.model.decoder import last_hidden
from isogloss.model.load import load_model, load_tokenizer, pad_id
from isogloss.teacher.rows import Row, TeacherView, build_rows
from isogloss.teacher.texts import node_texts
from isogloss.train.objective import DIVERGENCES


def rows_of(folder: str, items: int, limit: int) -> list[Row]:
    """Return stage 2's rows of the first items of every target language."""
    config = load_config()
    codes = config.languages.targets
    examples = parallel_examples(config, None, codes)
    tree = build_tree(list(codes), ranks={"root": 1, "family": 1, "language": 1})
    return build_rows(
        {code: [e for e in examples if code in e.turns][:items] for code in codes},
        load_tokenizer(folder),
        tree,
        TeacherView(node_texts(config)),
        english={e.id: e.turns[SOURCE].response or "" for e in examples},
        responses="reference",
        limit=limit,
    )


@torch.no_grad()
def states(model, rows: list[Row], blank: int, *, privileged: bool) -> Tensor:
    """Return the last hidden states at all response positions, after the teacher's or student's prompts."""
    found = []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        prompts = [row.teacher_prompt if privileged else row.student.prompt for row in part]
        texts = [[*prompt, *row.student.response] for prompt, row in zip(prompts, part, strict=True)]
        ids, mask = pad(texts, blank)
        lengths = [len(row.student.response) for row in part]
        at = response_positions([len(prompt) for prompt in prompts], lengths, ids.shape[1])
        found.append(last_hidden(model, ids, mask).flatten(0, 1)[at])
    return torch.cat(found)


def judged(student: Tensor, head: Head, said: Tensor | TopK, divergence: Divergence) -> tuple[float, Tensor]:
    """Return the divergence in nats per token and its gradient with respect to the hidden states."""
    hidden = student.clone().requires_grad_()
    if isinstance(said, TopK):
        where = torch.arange(len(said)).repeat_interleave(said.ids.shape[1])
        tokens, rest = token_log_probs(
            head.linear, hidden, said.ids.long().flatten(), where, size=64, fixed=head
        )
        total = DIVERGENCES[divergence](Kept(tokens.view(said.ids.shape), rest), said)
    else:
        total = scored(hidden, head, said, size=64, divergence=divergence)[1]
    total.backward()
    assert hidden.grad is not None
    return total.item() / len(hidden), hidden.grad


def measure(folder: str, ks: list[int], items: int, limit: int) -> list[dict]:
    """Return a row per divergence and signal."""
    model = load_model(folder, torch.float32).requires_grad_(False)
    head = frozen_head(model)
    assert head is not None, "the model's head is not a plain linear layer"
    rows, blank = rows_of(folder, items, limit), pad_id(load_tokenizer(folder))
    student = states(model, rows, blank, privileged=False)
    teacher = states(model, rows, blank, privileged=True)
    vocab = head.linear.weight.shape[0]
    found: list[dict] = []
    for divergence in DIVERGENCES:
        dense, slope = judged(student, head, teacher, divergence)

        def add(
            signal: str,
            size: float,
            said: Tensor | TopK,
            divergence=divergence,
            dense=dense,
            slope=slope,
            **more,
        ) -> None:
            value, other = judged(student, head, said, divergence)
            found.append(
                {
                    "divergence": divergence,
                    "signal": signal,
                    "bytes_per_token": size,
                    **more,
                    "dense_nats": dense,
                    "nats": value,
                    "value_error": abs(value - dense) / dense,
                    "gradient_error": float((other - slope).norm() / slope.norm()),
                }
            )

        half = teacher.bfloat16()
        add("hidden", half.shape[1] * 2, half.float())
        for k in ks:
            tops = [TopK.of(head.logits(part), k) for part in teacher.split(64)]
            add("exact", 8 * k, TopK.cat(tops), k=k)
            add("top_k", 4 * k, TopK.cat([unpack(pack(top, vocab), vocab) for top in tops]), k=k)
    for row in found:
        row["tokens"] = len(student)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model's folder, or `demo`")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--items", type=int, default=16, help="rows per language")
    parser.add_argument("--limit", type=int, default=2048, help="maximum tokens of a prompt")
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    given = parser.parse_args()
    found = {
        "model": given.model,
        "rows": measure(given.model, given.k, given.items, given.limit),
        **about("isogloss", "torch", "transformers"),
    }
    put(found, given.out)


if __name__ == "__main__":
    main()
