"""One optimiser step of distillation, ours and peers': seconds and peak memory, measured in one run.

    python benchmarks/distill_step.py --workload W2 --out benchmarks/distill_step.json

Every contender runs in a separate process on the same random model, token IDs and LoRA targets: one warm-up
step, then `--steps` timed steps. Peers get the inputs their interface expects; their teacher prompt is no
longer than the student's, ours is twice as long. `floor_s` is the time of the contender's FLOPs at the rate
of a large matrix product of the same dtype measured in the same run. With a GPU, everything runs on it,
including W1 with 32 rows, and peak GPU memory is measured. CPUs without bfloat16 products need
`--dtype float32`, or `--memory-only`, which computes the products in float32 piece by piece: its times are
meaningless.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
from machine import processor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

if TYPE_CHECKING:
    from isogloss.teacher.rows import Row


@dataclass(frozen=True)
class Workload:
    """Shapes of one step."""

    model: dict
    rows: int
    prompt: int
    teacher_prompt: int
    response: int
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rank: int = 16
    languages: int = 4
    """Languages in the tree; each row gets one, spread over them."""
    dtype: torch.dtype = torch.bfloat16
    """Dtype of weights and activations."""


SMALL = {
    "model_type": "qwen3",
    "vocab_size": 12_288,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
HALF_BILLION = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
GEMMA_270M = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
REAL = Workload(GEMMA_270M, 32, 45, 90, 4, targets=ALL_LINEAR, languages=12)
"""Lengths of MASSIVE and SIB-200 rows in Gemma's tokens; the hidden-state term is included."""
WORKLOADS = {
    "W-real": REAL,
    "W-real-long": replace(REAL, response=40),
    "W1": Workload(HALF_BILLION, 8, 128, 256, 128),
    "W1-32": Workload(HALF_BILLION, 32, 128, 256, 128),
    "W2": Workload(SMALL, 32, 48, 96, 16),
    "W3-1": Workload(SMALL, 32, 48, 96, 16, languages=1),
    "W3-12": Workload(SMALL, 32, 48, 96, 16, languages=12),
    "W3-50": Workload(SMALL, 32, 48, 96, 16, languages=50),
    "W3-101": Workload(SMALL, 32, 48, 96, 16, languages=101),
}
TOP_K = 64
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def now() -> float:
    """Return the time in seconds, after all pending GPU work."""
    if GPU:
        torch.cuda.synchronize()
    return time.monotonic()


def languages_of(work: Workload) -> list[str]:
    """Return languages of many families from the registry, without English."""
    from isogloss.languages import languages

    first = ["sw", "es", "ur", "ru"]
    others = [code for code in languages() if code not in (*first, "en")]
    return (first + others)[: work.languages]


def ids(work: Workload, length: int, seed: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(10, work.model["vocab_size"], (work.rows, length), generator=made).tolist()


def model_of(work: Workload) -> nn.Module:
    torch.manual_seed(0)
    kind = dict(work.model)
    config = AutoConfig.for_model(kind.pop("model_type"), **kind)
    attention = None if GPU else "eager"  # as in the package
    made = AutoModelForCausalLM.from_config(config, dtype=work.dtype, attn_implementation=attention)
    return made.to(DEVICE)


def lora(work: Workload):
    from peft import LoraConfig

    return LoraConfig(
        r=work.rank, lora_alpha=2 * work.rank, target_modules=list(work.targets), task_type="CAUSAL_LM"
    )


class Clock(TrainerCallback):
    """Callback that records seconds per step of a Trainer, from the end of the previous step."""

    def __init__(self):
        self.steps: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = now()

    def on_step_end(self, args, state, control, **kwargs):
        after = now()
        self.steps.append(after - self.before)
        self.before = after


def arguments(folder: str, steps: int, work: Workload) -> dict:
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": work.rows,
        "learning_rate": 1e-4,
        "use_cpu": not GPU,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }


class Pieces(TorchDispatchMode):
    """Computes bfloat16 products in float32, piece by piece, for CPUs without bfloat16 products.

    Memory is the same except for the copies of one piece, about 50 MB.
    """

    SIZE = 2048

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        products = torch.ops.aten.mm, torch.ops.aten.bmm
        sums = torch.ops.aten.addmm, torch.ops.aten.baddbmm
        if func.overloadpacket in products and args[0].dtype == torch.bfloat16:
            return self.product(*args)
        if func.overloadpacket in sums and args[1].dtype == torch.bfloat16:
            first, left, right = args
            beta, alpha = (kwargs or {}).get("beta", 1), (kwargs or {}).get("alpha", 1)
            return self.product(left, right, first, beta, alpha)
        return func(*args, **(kwargs or {}))

    def product(self, left: Tensor, right: Tensor, first=None, beta=1, alpha=1) -> Tensor:
        """Return alpha · left · right + beta · first, accumulated in float32 and rounded once."""
        out = left.new_empty(*left.shape[:-1], right.shape[-1])
        first = None if first is None else first.expand(out.shape)
        for column in range(0, out.shape[-1], self.SIZE):
            there = slice(column, column + self.SIZE)
            total = 0.0 if first is None else beta * first[..., there].float()
            for row in range(0, right.shape[-2], self.SIZE):
                part = slice(row, row + self.SIZE)
                total = total + alpha * (left[..., part].float() @ right[..., part, there].float())
            out[..., there] = total
        return out


# --- ours


def ranks(work: Workload) -> dict[str, int]:
    """Return ranks of a tree whose paths have the rank of the peers' LoRA."""
    return {"root": work.rank // 2, "family": work.rank // 4, "language": work.rank // 4}


def rows_of(work: Workload) -> list["Row"]:
    """Return random rows in alternating languages."""
    from isogloss.data.chat import Encoded
    from isogloss.teacher.rows import Row

    codes = languages_of(work)
    prompts, privileged, twins, responses = (
        ids(work, length, seed)
        for seed, length in enumerate((work.prompt, work.teacher_prompt, work.prompt, work.response))
    )
    return [
        Row(
            str(n),
            codes[n * max(1, len(codes) // work.rows) % len(codes)],
            n,
            Encoded(tuple(prompts[n]), tuple(responses[n])),
            tuple(privileged[n]),
            tuple(twins[n]),
        )
        for n in range(work.rows)
    ]


def isogloss(
    work: Workload,
    steps: int,
    *,
    kind: str = "hidden",
    live: bool = False,
    compile: bool = False,
) -> tuple[list[float], float]:
    """Run the package's trainer on a tree of languages whose paths have the rank of the peers' LoRA."""
    from transformers import TrainingArguments

    from isogloss.adapters.lora import TreeLora
    from isogloss.adapters.tree import build_tree
    from isogloss.model.cost import Meter
    from isogloss.model.decoder import two_thirds
    from isogloss.teacher.signals import teacher_signals
    from isogloss.train.batch import Ordered, collate, samples_of
    from isogloss.train.objective import Weights
    from isogloss.train.trainer import ResponseTrainer

    tree = build_tree(languages_of(work), ranks=ranks(work))
    adapters = TreeLora(model_of(work), tree, targets=work.targets, scaling=2.0)
    rows = rows_of(work)
    layer = two_thirds(adapters.model)
    adapters.off()

    def read():
        return teacher_signals(adapters.model, rows, layer=layer, pad_id=0, kind=kind, k=TOP_K)

    class Live(ResponseTrainer):
        """Computes the teacher's signals inside the step."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self.adapters.off()
            inputs["batch"] = collate(samples_of(rows, read()), 0)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    clock, meter = Clock(), Meter(adapters.model, tree.path_rank() / tree.rank)
    samples = samples_of(rows, read())
    make = Live if live else ResponseTrainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(
            model=adapters.model,
            adapters=adapters,
            weights=Weights(1.0, 1.0, 1.0, layer=layer),
            pad_id=0,
            compile=compile,
            train_dataset=Ordered(samples, list(range(work.rows)) * steps),
            callbacks=[clock],
            args=TrainingArguments(**arguments(folder, steps, work), remove_unused_columns=False),
        )
        with meter.counting():
            trainer.train()
    # The head's hooks cannot tell the teacher's logits at response positions from the student's.
    return clock.steps, meter.flops / steps


# --- peers


def batch_of(work: Workload) -> dict[str, Tensor]:
    """Return a batch of prompts directly followed by responses; labels are -100 except on responses."""
    prompts, responses = (
        torch.tensor(ids(work, length, seed), device=DEVICE)
        for length, seed in ((work.prompt, 0), (work.response, 3))
    )
    both = torch.cat([prompts, responses], 1)
    labels = both.clone()
    labels[:, : work.prompt] = -100
    return {
        "input_ids": both,
        "attention_mask": torch.ones_like(both),
        "labels": labels,
        "prompts": prompts,
        "prompt_attention_mask": torch.ones_like(prompts),
    }


def trl_gkd(work: Workload, steps: int, **more) -> tuple[list[float], float]:
    """trl's GKDTrainer: off-policy, forward KL, with a copy of the model as teacher."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd.gkd_config import GKDConfig
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    from isogloss.model.cost import Meter
    from isogloss.model.load import model_folder

    batch, clock, model, teacher = batch_of(work), Clock(), model_of(work), model_of(work)
    mine, theirs = Meter(model), Meter(teacher)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=model,
            teacher_model=teacher,
            peft_config=lora(work),
            callbacks=[clock],
            args=GKDConfig(
                **arguments(folder, steps, work),
                lmbda=0.0,
                beta=0.0,
                temperature=1.0,
                bf16=work.dtype == torch.bfloat16,  # its default, whatever the weights' type
                **more,
            ),
            train_dataset=Dataset.from_list([{"number": n} for n in range(work.rows * steps)]),
            data_collator=lambda rows: {name: value.clone() for name, value in batch.items()},
            processing_class=AutoTokenizer.from_pretrained(model_folder("demo")),
        )
        with mine.counting(), theirs.counting():
            trainer.train()
    return clock.steps, (mine.flops + theirs.flops) / steps


def trl_sft(work: Workload, steps: int) -> tuple[list[float], float]:
    """trl's SFTTrainer with its defaults: cross-entropy on the responses, without a teacher."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from isogloss.model.cost import Meter
    from isogloss.model.load import model_folder

    batch, clock, model = batch_of(work), Clock(), model_of(work)
    meter = Meter(model)
    rows = {name: batch[name].tolist() * steps for name in ("input_ids", "labels")}
    with tempfile.TemporaryDirectory() as folder:
        given = arguments(folder, steps, work) | {"bf16": work.dtype == torch.bfloat16}
        trainer = SFTTrainer(
            model=model,
            peft_config=lora(work),
            callbacks=[clock],
            args=SFTConfig(**given),
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(model_folder("demo")),
        )
        with meter.counting():
            trainer.train()
    return clock.steps, meter.flops / steps


def looped(work: Workload, steps: int, loss_of, *, teacher: str) -> tuple[list[float], float]:
    """A hand-written loop with PEFT's LoRA and AdamW; the teacher is the model without its adapter."""
    from peft import get_peft_model

    from isogloss.model.cost import Meter

    model = get_peft_model(model_of(work), lora(work))
    batch, seconds, meter = batch_of(work), [], Meter(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-4)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    stored = None
    if teacher == "stored":
        with torch.no_grad(), model.disable_adapter():
            logits = torch.cat([model(input_ids=row[None]).logits for row in batch["input_ids"]])
        top = logits.float().log_softmax(-1).topk(TOP_K, -1)
        stored = top.values, top.indices
        del logits
    with meter.counting():
        for _ in range(steps):
            began = now()
            loss_of(model, asked, batch["labels"], stored).backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(now() - began)
    return seconds, meter.flops / steps


def plain_loss(model, asked, labels, stored) -> Tensor:
    """KL of full float32 distributions at every position, masked afterwards."""
    with torch.no_grad(), model.disable_adapter():
        p = model(**asked).logits[:, :-1].float().log_softmax(-1)
    q = model(**asked).logits[:, :-1].float().log_softmax(-1)
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return kl[labels[:, 1:] != -100].mean()


def top_k_loss(model, asked, labels, stored) -> Tensor:
    """KL against stored top-k log-probabilities, as in DistillKit, plus cross-entropy."""
    logits = model(**asked).logits[:, :-1].float()
    q, (values, indices) = logits.log_softmax(-1), stored
    there = values[:, :-1].exp()
    kl = (there * (values[:, :-1] - q.gather(-1, indices[:, :-1]))).sum(-1)
    mask = labels[:, 1:] != -100
    return kl[mask].mean() + F.cross_entropy(logits[mask], labels[:, 1:][mask])


class Fused(torch.autograd.Function):
    """Sum of forward KL from hidden states; computes the gradient chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for start in range(0, len(hidden), 256):
            part = slice(start, start + 256)
            p = (teacher[part] @ weight.T).float().log_softmax(-1)
            q = (hidden[part] @ weight.T).float().log_softmax(-1)
            total += (p.exp() * (p - q)).sum()
            gradient[part] = (q.exp_().sub_(p.exp_())).to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None, None


def fused_loss(model, asked, labels, stored) -> Tensor:
    """KL against a live teacher at response positions only, without materialising all logits."""
    decoder, weight = (
        model.get_base_model().get_decoder(),
        model.get_base_model().get_output_embeddings().weight,
    )
    mask = labels[:, 1:] != -100
    with torch.no_grad(), model.disable_adapter():
        teacher = decoder(**asked, use_cache=False).last_hidden_state[:, :-1][mask]
    hidden = decoder(**asked, use_cache=False).last_hidden_state[:, :-1][mask]
    return Fused.apply(hidden, teacher, weight) / mask.sum()


CONTENDERS = {
    "isogloss-cached": lambda work, steps: isogloss(work, steps, kind="top_k"),
    "isogloss-hidden": isogloss,
    "isogloss-compiled": lambda work, steps: isogloss(work, steps, kind="top_k", compile=True),
    "isogloss-live": lambda work, steps: isogloss(work, steps, live=True),
    "trl-sft": trl_sft,
    "trl-gkd": trl_gkd,
    "trl-gkd-compiled": lambda work, steps: trl_gkd(work, steps, torch_compile=True),
    "distillkit-style": lambda work, steps: looped(work, steps, top_k_loss, teacher="stored"),
    "fused-loop": lambda work, steps: looped(work, steps, fused_loss, teacher="live"),
    "plain-loop": lambda work, steps: looped(work, steps, plain_loss, teacher="live"),
}


SCALING = ("isogloss-hidden",)
"""Contenders for the W3 workloads, which show how cost grows with the number of languages."""


def one(contender: str, workload: str, steps: int, dtype: str, memory_only: bool) -> dict:
    """Measure a contender in this process and return its row."""
    work = replace(WORKLOADS[workload], dtype=getattr(torch, dtype))
    with Pieces() if memory_only else nullcontext():
        seconds, flops = CONTENDERS[contender](work, steps + 1)
    timed = seconds[1:]
    fifths = quantiles(timed, n=5) if len(timed) > 1 else [timed[0]] * 4
    return {
        "workload": workload,
        "contender": contender,
        "median_s": median(timed),
        "p20_s": fifths[0],
        "p80_s": fifths[-1],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trained_tokens": work.rows * work.response,
        "flops": flops,
        "dtype": dtype,
        "memory_only": memory_only,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if GPU else None,
    }


def rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product, best of five."""
    size = 8192 if GPU else 2048
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    times = []
    for _ in range(5):
        began = now()
        a @ a
        times.append(now() - began)
    return 2 * size**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--contender", action="append", choices=CONTENDERS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        found = one(asked.contender[0], asked.workload[0], asked.steps, asked.dtype, asked.memory_only)
        print(json.dumps(found))
        return
    speed, rows = None if asked.memory_only else rate(getattr(torch, asked.dtype)), []
    about = {name: version(name) for name in ("torch", "transformers", "peft", "trl", "isogloss")}
    about |= {
        "processor": processor(),
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    every = [name for name in CONTENDERS if GPU or not name.endswith("compiled")]
    for workload in asked.workload or [name for name in WORKLOADS if GPU or name != "W1-32"]:
        for contender in asked.contender or (SCALING if workload.startswith("W3") else every):
            command = [sys.executable, __file__, "--inside", "--workload", workload, "--contender", contender]
            command += ["--steps", str(asked.steps), "--dtype", asked.dtype]
            command += ["--memory-only"] * asked.memory_only
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{workload} {contender}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            row = json.loads(done.stdout.strip().split("\n")[-1])
            floor = row["flops"] / speed if speed else None
            rows.append(row | {"floor_s": floor, "versions": about})
            if asked.out:
                asked.out.write_text(json.dumps(rows, indent=1) + "\n")
            memory = row["peak_device_bytes"] or row["peak_rss_bytes"]
            print(
                f"{workload} {contender:17} {row['median_s']:7.3f} s  {memory / 1e9:5.2f} GB  "
                f"{row['trained_tokens'] / row['median_s']:6.0f} tokens/s"
                + (f"  floor {floor:.3f} s" if floor else "")
            )


if __name__ == "__main__":
    main()
