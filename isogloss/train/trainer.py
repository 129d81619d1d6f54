"""One `transformers.Trainer` for both stages: response tokens only, normalised over the whole optimiser step.

Stage 1 has cross-entropy; stage 2 adds the divergence from the teacher and the hidden-state term.
The Trainer's loop, schedule and distribution are unchanged; its checkpoints also have counts and digests. The
row order is fixed beforehand, so a resumed run reads the same batches as an uninterrupted one.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from isogloss import processes
from isogloss.adapters.lora import TreeLora
from isogloss.config import Distill, Tune
from isogloss.config.base import Optimisation
from isogloss.errors import ConfigError, RunError
from isogloss.files import naming, write_json, write_lines
from isogloss.model.attention import compiled, thrifty_attention
from isogloss.model.cost import Meter
from isogloss.model.decoder import decoder_of, parts_of
from isogloss.train.batch import Batch, collate, twins_of
from isogloss.train.checkpoints import DIGESTS, digests_of, forget_other_rows, last_whole
from isogloss.train.node_rates import NodeRates
from isogloss.train.objective import BY_ROW, PARTS, Objective, Weights

COUNTS = ("tokens", "responses", "flops")


class ResponseTrainer(Trainer):
    """Train on response tokens; pass `adapters` for stage 2.

    Args:
        compile: Compile the decoder's layers during training.
        rates: Factors on the steps of the adapters' rows; see `node_rates`.
        also: Whatever else a step depends on, to tell whether a checkpoint may be resumed.

    Attributes:
        counts: Totals over all processes and steps: `tokens`, `responses` (response tokens) and `flops`.

    Raises:
        ConfigError: One process has several GPUs, or accelerate's FSDP or DeepSpeed is enabled.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        weights: Weights,
        pad_id: int,
        adapters: TreeLora | None = None,
        compile: bool = False,
        rates: Tensor | None = None,
        also: object = None,
        **kwargs: Any,
    ):
        args = kwargs["args"]
        if args.n_gpu > 1:
            raise ConfigError("one process uses one GPU; start one per GPU with `accelerate launch`")
        # Only an expert to which no token is routed lacks a gradient in a step.
        args.ddp_find_unused_parameters = adapters is None and any(
            "experts" in n for n, _ in model.named_modules()
        )
        twins = twins_of(kwargs["train_dataset"].samples)
        if twins is not None:
            twins = replace(twins, vectors=twins.vectors.to(args.device))
        objective = Objective(model, adapters, twins)
        # DDP must not compare or synchronise sharded parameters.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, parts_of(objective))
        super().__init__(
            model=objective,
            data_collator=lambda samples: {"batch": collate(samples, pad_id)},
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "accelerate's FSDP and DeepSpeed are not supported; start with examples/accelerate/ddp.yaml, "
                "and for a large model set shard or four_bit"
            )
        self.remove_callback(PrinterCallback)
        self.weights, self.adapters, self.compile, self.also = weights, adapters, compile, also
        self.rates = rates
        whole = all(p.requires_grad for p in decoder_of(model).parameters())
        self.meter = Meter(model, 1.0 if adapters is None else adapters.met, learns=whole)
        self.counts: dict[str, float] = {"tokens": 0, "responses": 0, "flops": 0}
        self.fresh: dict[str, float | Tensor] = {}
        """This process's counts and loss terms since the last `settle`.

        Loss terms stay on the device until then, since reading one would synchronise with it."""
        self.languages: set[str] = set()
        """Languages of the rows read so far; `checks.PathsOnly` clears it."""

    @property
    def how(self) -> tuple:
        """What a step depends on besides its rows: optimiser, loss and trainable parameters."""
        args = self.args
        kind = str(args.optim), str(args.lr_scheduler_type)
        optimiser = *kind, args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2
        learns = [(n, tuple(p.shape)) for n, p in self.model.named_parameters() if p.requires_grad]  # type: ignore[union-attr]
        steps = args.max_grad_norm, args.warmup_steps, args.max_steps, args.gradient_accumulation_steps
        # Parameters of the same shapes may have another scaling or belong to other nodes.
        rates = None if self.rates is None else self.rates.tolist()
        tree = self.adapters and (
            self.adapters.tree.nodes,
            [one.scaling for one in self.adapters.layers()],
            rates,
        )
        return *optimiser, *steps, self.weights, learns, *([tree] if tree else []), self.also

    def train(self, *args: Any, **kwargs: Any) -> Any:
        below: Any = self.model.model  # type: ignore[union-attr]
        with self.meter.counting(), compiled(below) if self.compile else thrifty_attention(below):
            return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made and self.adapters is not None and self.rates is not None:
            NodeRates(self.adapters, self.rates).attach(optimizer)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # the order is in the data

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Count response tokens and rows of the whole optimiser step, over accumulation and ranks."""
        batches = [sample["batch"] for sample in batch_samples]
        here = sum(len(b.response) for b in batches), sum(len(b.ids) for b in batches)
        # A step with only bare sentences has no response token.
        return torch.tensor(processes.total(here), dtype=torch.float32, device=device).clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        batch: Batch = inputs["batch"].to(self.args.device)
        weights = self.weights.at(self.state.global_step / self.state.max_steps)
        parts = model(batch, weights)
        tokens, rows = num_items_in_batch
        scaled = {name: part / (rows if name in BY_ROW else tokens) for name, part in parts.items()}
        loss = weights.total(scaled)
        for name, part in (scaled | {"loss": loss}).items():
            self.note(name, part.detach())
        self.languages.update(batch.languages)
        self.note("tokens", int(inputs["batch"].mask.sum()))
        self.note("responses", len(batch.response))
        # DDP averages gradients over processes, but this normalisation needs their sum.
        loss = loss * self.args.world_size
        return (loss, None) if return_outputs else loss

    def note(self, name: str, amount: float | Tensor) -> None:
        """Add to a count or loss term."""
        self.fresh[name] = self.fresh.get(name, 0) + amount

    def settle(self) -> dict[str, float]:
        """Sum over processes what was noted since the last call; return the loss terms."""
        self.note("flops", self.meter.take()[0])
        here, self.fresh = {name: float(value) for name, value in self.fresh.items()}, {}
        if self.args.world_size > 1:
            names = (*PARTS, *COUNTS)
            everywhere = zip(names, processes.total([here.get(name, 0) for name in names]), strict=True)
            here = {name: value for name, value in everywhere if value or name in here}
        for name in COUNTS:
            if name in here:
                amount = here.pop(name)
                self.counts[name] = self.counts.get(name, 0) + (amount if name == "flops" else round(amount))
        return here

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            write_json(folder / "counts.json", self.counts)
            write_json(folder / DIGESTS, digests_of(folder))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir))
        try:
            with naming(folder):
                super()._save_checkpoint(*args, **kwargs)
        except RuntimeError as error:  # torch reports a full disk as a wrong position
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            free = shutil.disk_usage(folder).free
            raise RunError(
                f"{folder}: a checkpoint could not be written; only {free / 1e9:.1f} GB are left there: free "
                "some space and run again"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.counts = json.loads((Path(resume_from_checkpoint) / "counts.json").read_text("utf-8"))


class Watch(TrainerCallback):
    """Write a line of the learning curve every `every` steps and report progress."""

    def __init__(self, curve: Path, stage: str, every: int, progress: Callable[[int, int], None]):
        self.curve, self.stage, self.every, self.progress = curve, stage, every, progress
        self.trainer: ResponseTrainer | None = None
        self.sums: dict[str, float] = {}
        self.since = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines after the checkpoint that training resumes from: those steps are repeated."""
        if not state.is_world_process_zero:
            return
        lines = self.curve.read_text("utf-8").split("\n") if self.curve.exists() else []
        # A killed process may leave a truncated last line; a power cut, lines of zeros.
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        write_lines(
            self.curve, (e for e in entries if e["stage"] != self.stage or e["step"] <= state.global_step)
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        for name, value in self.trainer.settle().items():
            if not math.isfinite(value):
                raise RunError(
                    f"{name} is {value} at step {state.global_step} of {state.max_steps}; try a lower "
                    f"{'tune' if self.stage == 'tune' else 'distill'}.learning_rate, or dtype: float32"
                )
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.since += 1
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            means = {name: round(value / self.since, 5) for name, value in self.sums.items()}
            entry = {"stage": self.stage, "step": state.global_step, "loss": means.pop("loss"), **means}
            if state.is_world_process_zero:
                with self.curve.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            if args.report_to:
                shown = {name: value for name, value in entry.items() if name not in ("stage", "step")}
                self.trainer.log({f"{self.stage}/{name}": value for name, value in shown.items()})
            self.sums, self.since = {}, 0
        self.progress(state.global_step, state.max_steps)


def _entry(line: str) -> dict[str, Any] | None:
    """Parse a line of a learning curve; None if it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"stage", "step"} <= entry.keys() else None


def optimisation(settings: Tune | Distill) -> dict[str, Any]:
    """Return the optimisation settings that both stages share, as arguments of `training_arguments`."""
    return {name: getattr(settings, name) for name in ("learning_rate", *Optimisation.model_fields)}


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    gradient_accumulation_steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup_ratio: float = 0.05,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.98,
    max_grad_norm: float = 1.0,
    seed: int,
    bf16: bool,
    save_every: int,
    report_to: Sequence[str] = (),
) -> TrainingArguments:
    """Return both stages' arguments: AdamW, linear warm-up, cosine decay to 0, no logging, checkpoints.

    Args:
        batch_size: Rows per optimiser step, over accumulation and processes.
        gradient_accumulation_steps: Number of micro-batches into which each process splits its rows.
        report_to: Trackers that receive the learning curve, by transformers' names.

    Raises:
        ConfigError: `batch_size` is not divisible by processes × accumulation steps.
    """
    several = processes.count()
    parts = several * gradient_accumulation_steps
    rows, left = divmod(batch_size, parts)
    if left:
        raise ConfigError(
            f"batch_size ({batch_size}) must be divisible by processes × gradient_accumulation_steps "
            f"({several} × {gradient_accumulation_steps})"
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=gradient_accumulation_steps,
        optim="adamw_torch_fused",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        lr_scheduler_type="cosine",
        warmup_steps=math.floor(steps * warmup_ratio + 1e-9),
        max_grad_norm=max_grad_norm,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        save_steps=save_every,
        save_total_limit=2,  # the last may be damaged
        logging_strategy="no",
        report_to=list(report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        include_num_input_tokens_seen=False,
    )


def train(
    trainer: ResponseTrainer, watch: Watch, folder: Path, say: Callable[[str], None] = lambda text: None
) -> None:
    """Train, resuming from the last intact checkpoint in the folder if it is of the same rows and settings.

    Args:
        say: Callback that receives a warning if checkpoints are damaged or from other rows or settings.
    """
    watch.trainer = trainer
    trainer.add_callback(watch)
    forget_other_rows(folder, trainer.train_dataset, trainer.how, say)  # type: ignore[arg-type]
    checkpoint = last_whole(folder, say)
    # No cuDNN attention: its backward pass gives nan if a row's first positions are masked (torch 2.11).
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
