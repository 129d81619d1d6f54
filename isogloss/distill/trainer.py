"""One `transformers.Trainer` for both stages: response tokens only, normalised over the whole optimiser step.

Stage 1 has cross-entropy; stage 2 adds the divergence from the teacher and the hidden-state term.
The Trainer keeps its loop, schedule, checkpoints and distribution; the order of rows is fixed
beforehand, so a resumed run reads what an unbroken one would have read.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from isogloss import processes
from isogloss.cost import Meter
from isogloss.data.chat import Encoded, pad, response_positions
from isogloss.distill import fused, losses
from isogloss.distill.branches import branched_hidden, layout
from isogloss.distill.rows import Row
from isogloss.distill.signal import Signal
from isogloss.distill.topk import TopK
from isogloss.errors import ConfigError, RunError
from isogloss.files import naming, read_json, write_json, write_lines
from isogloss.languages import SOURCE
from isogloss.model import (
    capture,
    causal_of,
    decoder_of,
    head,
    last_hidden,
    mean_pool,
    parts_of,
    states_up_to,
)
from isogloss.modes import compiled, thrifty_attention
from isogloss.standardise import Statistics, standardised, statistics_of, unscaled
from isogloss.tree.carrier import Carrier
from isogloss.tree.nodes import Tree

DIVERGENCES = {
    "forward": losses.forward_kl,
    "reverse": losses.reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
}


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts, the layer and divergence it reads, and their temperatures."""

    ce: float = 1.0
    kl: float = 0.0
    hidden: float = 0.0
    retain: float = 1.0
    layer: int = 1
    divergence: fused.Divergence = "forward"
    temperature: float = 1.0
    contrast: float = 0.05
    fade: float = 0.0

    def at(self, done: float) -> "Weights":
        """These at a share of the way: the weight of `hidden` falls to 0 in a line over `fade` of it."""
        return replace(self, hidden=self.hidden * max(0.0, 1 - done / self.fade)) if self.fade else self


@dataclass(frozen=True)
class Sample:
    """One row of a batch; stage 1 has neither language nor signal. Meanings are numbered from 0 on."""

    encoded: Encoded
    language: str = ""
    meaning: int = 0
    signal: Signal | None = None
    options: tuple[tuple[int, ...], ...] = ()
    """All that may be answered, end of turn included, where the signal has a distribution over it."""

    @property
    def bare(self) -> bool:
        """Whether it is a sentence that nobody answers."""
        return not self.encoded.response


class Ordered(Dataset):
    """Samples in the order of training, repeats included."""

    def __init__(self, samples: Sequence[Sample], order: Sequence[int]):
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Sample:
        return self.samples[self.order[number]]


def samples_of(rows: Sequence[Row], signals: Sequence[Signal]) -> list[Sample]:
    """Rows joined to their signals, their meanings numbered anew without gaps."""
    numbers = {meaning: n for n, meaning in enumerate(dict.fromkeys(row.meaning for row in rows))}
    return [
        Sample(
            row.student,
            row.language,
            numbers[row.meaning],
            signal,
            row.options if signal.options is not None else (),
        )
        for row, signal in zip(rows, signals, strict=True)
    ]


FEW = 8
"""Twins below which there are too few to standardise by: those of both kinds do it together, or none."""


@dataclass(frozen=True)
class Twins:
    """What the hidden-state term compares with.

    Attributes:
        vectors: The English twin of every meaning, standardised, in the order of their numbers.
        statistics: Mean and spread of the twins that are instructions (False) and bare sentences (True): a
            template moves every state behind it. Rows of all languages are standardised by them, so what
            moves a whole language away from English is to be unlearned.
    """

    vectors: Float[Tensor, "meanings hidden"]
    statistics: Mapping[bool, Statistics]

    def standardise(
        self, pooled: Float[Tensor, "rows hidden"], bare: Sequence[bool]
    ) -> Float[Tensor, "rows hidden"]:
        kinds = torch.tensor(bare, device=pooled.device)[:, None]
        return torch.where(kinds, *(standardised(pooled, self.statistics[kind]) for kind in (True, False)))


def twins_of(samples: Sequence[Sample]) -> Twins | None:
    """The English twins of all meanings; None in stage 1."""
    found = {s.meaning: (s.signal.twin, s.bare) for s in samples if s.signal is not None}
    if not found:
        return None
    vectors = torch.stack([found[number][0] for number in range(len(found))])
    bare = [found[number][1] for number in range(len(found))]
    statistics = {}
    for kind in (False, True):
        own = vectors[torch.tensor([one == kind for one in bare])]
        enough = own if len(own) >= FEW else vectors
        statistics[kind] = statistics_of(enough) if len(enough) >= FEW else unscaled(vectors)
    made = Twins(vectors, statistics)
    return replace(made, vectors=made.standardise(vectors, bare))


@dataclass
class Options:
    """The answer options of a batch's rows, one behind the other.

    Attributes:
        branch: Which answer of its row each token belongs to, as `branches` lays them out.
        place: The position of each token, as if its answer alone stood behind the prompt.
        positions: Where each option token is predicted, in the flattened batch.
        ids: The option tokens.
        lengths: Tokens of each option.
        sizes: Options of each row that has any.
        targets: ln probability of each option under the reference model, in the order of `lengths`.
    """

    branch: Tensor
    place: Tensor
    positions: Tensor
    ids: Tensor
    lengths: list[int]
    sizes: list[int]
    targets: Tensor

    def to(self, device: torch.device) -> "Options":
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        return Options(**moved)


@dataclass
class Batch:
    """A collated batch; rows are padded on the right."""

    ids: Tensor
    mask: Tensor
    prompt_mask: Tensor
    asked: Tensor
    """1 where a token belongs to the instruction itself, not to BOS or the template."""
    positions: Tensor
    response: Tensor
    languages: list[str]
    paths: list[str]
    """Whose path each row reads: its language's, or a node's above it."""
    bare: list[bool]
    """Which rows are sentences that nobody answers."""
    meanings: Tensor
    scored: Tensor
    retained: Tensor
    teacher: Tensor | TopK | None
    options: Options | None = None

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor | TopK | Options) else v for k, v in vars(self).items()
        }
        return Batch(**moved)


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Pad, and note where each response token is predicted."""
    encoded = [sample.encoded for sample in samples]
    # The response comes first, so what is said of responses is the same whatever stands behind them.
    others = [[one for one in s.options if one != s.encoded.response] for s in samples]
    texts = [[*e.prompt, *e.response, *chain(*more)] for e, more in zip(encoded, others, strict=True)]
    ids, mask = pad(texts, pad_id)
    starts, lengths = [len(e.prompt) for e in encoded], [len(e.response) for e in encoded]
    signals = [sample.signal for sample in samples]
    known = [signal for signal in signals if signal is not None]
    said = [signal.teacher for signal in known if signal.teacher is not None]
    scored = torch.cat([_scored(s, length) for s, length in zip(signals, lengths, strict=True)])
    english = torch.tensor([sample.language == SOURCE for sample in samples])
    return Batch(
        ids=ids,
        mask=mask,
        prompt_mask=(torch.arange(ids.shape[1])[None] < torch.tensor(starts)[:, None]).long(),
        asked=pad([list(map(int, e.asked)) or [1] * len(e.prompt) for e in encoded], 0, width=ids.shape[1])[
            0
        ],
        positions=response_positions(starts, lengths, ids.shape[1]),
        response=torch.tensor([token for e in encoded for token in e.response], dtype=torch.long),
        languages=[sample.language for sample in samples],
        paths=[sample.language for sample in samples],
        bare=[sample.bare for sample in samples],
        meanings=torch.tensor([sample.meaning for sample in samples]),
        scored=scored,
        retained=scored & english.repeat_interleave(torch.tensor(lengths)),
        teacher=_joined(said),
        options=_options(samples, others, ids.shape[1]) if any(s.options for s in samples) else None,
    )


def _options(samples: Sequence[Sample], others: Sequence[Sequence[tuple[int, ...]]], width: int) -> Options:
    branches, places, positions, ids, lengths, targets = [], [], [], [], [], []
    for number, (sample, more) in enumerate(zip(samples, others, strict=True)):
        prompt, answers = len(sample.encoded.prompt), [sample.encoded.response, *more]
        branch, place, starts = layout(prompt, [len(answer) for answer in answers])
        branches.append(branch)
        places.append(place)
        for option in sample.options:
            start = starts[answers.index(option)]
            # The prompt's last token predicts every answer's first.
            before = [prompt - 1, *range(start, start + len(option) - 1)]
            positions += [number * width + one for one in before]
            ids += option
            lengths.append(len(option))
        if sample.options:
            assert sample.signal is not None and sample.signal.options is not None
            targets.append(sample.signal.options)
    return Options(
        branch=pad(branches, -1)[0],
        place=pad(places, 0)[0],
        positions=torch.tensor(positions),
        ids=torch.tensor(ids),
        lengths=lengths,
        sizes=[len(sample.options) for sample in samples if sample.options],
        targets=torch.cat(targets).float(),
    )


def _scored(signal: Signal | None, length: int) -> Tensor:
    """Which tokens of a response the teacher speaks of."""
    if signal is None or signal.teacher is None:
        return torch.zeros(length, dtype=torch.bool)
    return torch.ones(length, dtype=torch.bool) if signal.covered is None else signal.covered


def _joined(said: Sequence[Tensor | TopK]) -> Tensor | TopK | None:
    """What the teacher says of one row after the other; a batch's signals are all of one kind."""
    if not said:
        return None
    tops = [one for one in said if isinstance(one, TopK)]
    return TopK.cat(tops) if tops else torch.cat([one for one in said if isinstance(one, Tensor)])


def batch_losses(
    model: nn.Module,
    batch: Batch,
    weights: Weights,
    carrier: Carrier | None = None,
    twins: Twins | None = None,
    *,
    gpu: bool | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss as sums: `ce`, `kl` and `retain` over response tokens, `options` and `hidden`
    over rows.

    In English the reference model is what is wanted, right or wrong: those rows have `retain`, the
    divergence from its own reading of the same prompt, and neither `ce` nor `kl`.

    Args:
        twins: The English twins' states, for the hidden-state term.
        gpu: Logits are held as on a GPU, or as on a processor; as where the batch lies if not given.
    """
    score = partial(_sums, model, size=chunk_size(model, batch.ids.is_cuda if gpu is None else gpu))
    if carrier is not None:
        carrier.set_path(batch.paths)

    def alike(states: Tensor) -> Tensor:
        assert twins is not None
        pooled = twins.standardise(mean_pool(states, batch.asked), batch.bare)
        return losses.similarity(pooled, twins.vectors, batch.meanings, temperature=weights.contrast)

    # Of sentences that nobody answers no layer above is wanted; with several processes every adapter has to
    # have a gradient in each.
    if twins is not None and weights.hidden and all(batch.bare) and processes.count() == 1:
        states = states_up_to(model, batch.ids, batch.mask, [weights.layer])[weights.layer]
        return {"ce": states.new_zeros((), dtype=torch.float32), "hidden": alike(states)}
    with capture(model, weights.layer) as states:
        if batch.options is None:
            hidden = last_hidden(model, batch.ids, batch.mask)
        else:
            hidden = branched_hidden(model, batch.ids, batch.options.branch, batch.options.place)
    answers = hidden.flatten(0, 1)[batch.positions]

    taught = ~batch.retained
    divided = batch.teacher is not None and bool(weights.kl)
    heard = taught & batch.scored if divided else taught
    ce, kl = score(
        answers[heard], batch.response[heard], _said(batch, heard) if divided else None,
        weights.divergence, weights.temperature, (weights.ce, weights.kl),
    )  # fmt: skip
    parts = {"ce": ce} | ({"kl": kl} if divided else {})
    unheard = taught & ~heard
    if unheard.any():
        alone = score(answers[unheard], batch.response[unheard], None, weighed=(weights.ce, 0.0))
        parts["ce"] = ce + alone[0]
    if batch.retained.any():
        kept = batch.retained
        parts["retain"] = score(answers[kept], None, _said(batch, kept))[1]
    if batch.options is not None and weights.kl:
        parts["options"] = _answer_sets(model, hidden, batch.options, score.keywords["size"])
    if twins is not None and weights.hidden:
        parts["hidden"] = alike(states[0])
    return parts


def _answer_sets(model: nn.Module, hidden: Tensor, options: Options, size: int) -> Tensor:
    """Sum over rows of the divergence between reference model and student over a row's answer options."""
    states, fixed = hidden.flatten(0, 1)[options.positions], fused.frozen_head(model)
    if fixed is not None:
        tokens = fused.token_log_probs(states, fixed, options.ids, size=size)
    else:
        tokens = -F.cross_entropy(head(model, states).float(), options.ids, reduction="none")
    scores = torch.stack([part.sum() for part in tokens.split(options.lengths)])
    return losses.answer_set_kl(scores, options.targets, options.sizes)


def _said(batch: Batch, tokens: Tensor) -> Tensor | TopK:
    """The teacher's part of some response tokens, all of which it has scored."""
    assert batch.teacher is not None
    return batch.teacher[tokens[batch.scored]]


def _sums(
    model: nn.Module,
    hidden: Tensor,
    response: Tensor | None,
    teacher: Tensor | TopK | None,
    divergence: fused.Divergence = "forward",
    temperature: float = 1.0,
    weighed: tuple[float, float] = (1.0, 1.0),
    *,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence of some response tokens, sums in nats; 0 what is not asked for."""
    if not isinstance(teacher, TopK | None):
        teacher = teacher.to(hidden.dtype)
    fixed = fused.frozen_head(model)
    if fixed is not None:
        return fused.scored(
            hidden, fixed, size=size, response=response, teacher=teacher, divergence=divergence,
            temperature=temperature, weights=weighed,
        )  # fmt: skip

    def score(hidden: Tensor, *given: Any) -> Tensor:
        student, left = head(model, hidden), list(given)
        ce = kl = student.new_zeros((), dtype=torch.float32)
        if response is not None:
            ce = losses.cross_entropy(student, left.pop(0))
        if teacher is not None:
            said = left.pop(0)
            with torch.no_grad():
                said = said if isinstance(said, TopK) else head(model, said)
            kl = DIVERGENCES[divergence](student, said, temperature=temperature)
        return torch.stack([ce, kl])

    ce, kl = in_chunks(score, size, hidden, *(one for one in (response, teacher) if one is not None))
    return ce, kl


def drop_levels(tree: Tree, languages: Sequence[str], probability: float) -> list[str]:
    """Whose path each row reads where some leave out their leaf, and half of these their family too.

    Drawn from torch's own generator, which a checkpoint holds.
    """
    drawn = torch.rand(len(languages)).tolist()
    return [
        code if one >= probability else tree.cut(code, 1 if one >= probability / 2 else 2)
        for code, one in zip(languages, drawn, strict=True)
    ]


LOGITS, LOGITS_GPU = 1 << 25, 1 << 27
"""Logits in memory at a time, of student and of teacher; more are computed in chunks.

A GPU works off a chunk of the former before the next can be started (docs/log.md)."""


def chunk_size(model: nn.Module, gpu: bool) -> int:
    """Response tokens whose logits are held at a time."""
    many = LOGITS_GPU if gpu else LOGITS
    return max(1, many // causal_of(model).config.get_text_config().vocab_size)


def in_chunks(score: Callable[..., Tensor], size: int, hidden: Tensor, *others: Tensor | TopK) -> Tensor:
    """The sum of `score` over tokens, never holding the logits of more than `size` of them.

    For a head that learns, as in stage 1, or is no plain linear layer; `fused` serves the others. Equal to
    one call; where it takes several, each is computed again in backward.
    """
    if len(hidden) <= size:
        return score(hidden, *others)
    chunks = zip(hidden.split(size), *(other.split(size) for other in others), strict=True)
    totals = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(totals).sum(0)


class Objective(nn.Module):
    """The parts of the loss as one module's forward.

    A wrapper for several processes hears only of that call, and brings together only then what they found.
    Its state is what learns: a checkpoint has no frozen weight.
    """

    def __init__(self, model: nn.Module, carrier: Carrier | None, twins: Twins | None):
        super().__init__()
        self.model, self.carrier, self.twins = model, carrier, twins

    def forward(self, batch: Batch, weights: Weights) -> dict[str, Tensor]:
        return batch_losses(self.model, batch, weights, self.carrier, self.twins)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if state_dict.keys() != self.state_dict().keys():
            raise ValueError("the checkpoint belongs to a model or tree of another shape")
        super().load_state_dict(state_dict, strict=False)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])


PARTS = ("loss", "ce", "kl", "options", "retain", "hidden")
BY_ROW = ("options", "hidden")
"""Parts that are means over rows; the others are means over response tokens."""
WEIGHED = {"options": "kl"}
"""Parts that are weighed by the weight of another: both are divergences from the reference model."""
COUNTS = ("tokens", "responses", "generated", "prompted", "read", "calls", "flops")


class ResponseTrainer(Trainer):
    """Trains on response tokens; `carrier` makes it stage 2.

    Args:
        optimiser: Makes the optimiser for the model, where it is not the Trainer's own.
        compile: The decoder's layers are compiled while it trains.

    Attributes:
        counts: Of all processes and steps so far: `tokens`, `responses` (tokens of them), `flops`, and what
            on-policy steps add.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        weights: Weights,
        pad_id: int,
        carrier: Carrier | None = None,
        level_dropout: float = 0.0,
        optimiser: Callable[[nn.Module], Optimizer] | None = None,
        compile: bool = False,
        **kwargs: Any,
    ):
        args = kwargs["args"]
        if args.n_gpu > 1:
            raise ConfigError("one process drives one GPU; start more with `accelerate launch`")
        # An expert that no token is sent to has no gradient; all else has one in every step.
        args.ddp_find_unused_parameters = carrier is None and any(
            "experts" in n for n, _ in model.named_modules()
        )
        twins = twins_of(kwargs["train_dataset"].samples)
        if twins is not None:
            twins = replace(twins, vectors=twins.vectors.to(args.device))
        objective = Objective(model, carrier, twins)
        # What lies in parts is not DDP's to compare and to bring together.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, parts_of(objective))
        super().__init__(
            model=objective,
            data_collator=lambda samples: {"batch": collate(samples, pad_id)},
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "accelerate's FSDP and DeepSpeed are not served; start with examples/accelerate/ddp.yaml, "
                "and for a large model set shard or four_bit"
            )
        self.remove_callback(PrinterCallback)
        self.weights, self.carrier, self.level_dropout = weights, carrier, level_dropout
        self.make_optimiser, self.compile = optimiser, compile
        whole = all(p.requires_grad for p in decoder_of(model).parameters())
        self.meter = Meter(model, 1.0 if carrier is None else carrier.met, learns=whole)
        self.counts: dict[str, float] = {"tokens": 0, "responses": 0, "flops": 0}
        self.fresh: dict[str, float | Tensor] = {}
        """Counts and parts of the loss of this process since all were brought together.

        The parts lie on the device until then: to read one there would be to wait for it."""
        self.languages: set[str] = set()
        """Whose rows were read, for whoever clears it."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        below: Any = self.model.model  # type: ignore[union-attr]
        with self.meter.counting(), compiled(below) if self.compile else thrifty_attention(below):
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.make_optimiser is not None and self.optimizer is None:
            self.optimizer = self.make_optimiser(self.model.model)  # type: ignore[union-attr]
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # the order is in the data

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Response tokens and rows of the whole optimiser step, over accumulation and ranks."""
        batches = [sample["batch"] for sample in batch_samples]
        here = sum(len(b.response) for b in batches), sum(len(b.ids) for b in batches)
        # A step of bare sentences has no response token.
        return torch.tensor(processes.total(here), dtype=torch.float32, device=device).clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        batch: Batch = inputs["batch"].to(self.args.device)
        if self.carrier is not None and self.level_dropout:
            batch.paths = drop_levels(self.carrier.tree, batch.languages, self.level_dropout)
        weights = self.weights.at(self.state.global_step / self.state.max_steps)
        parts = model(batch, weights)
        tokens, rows = num_items_in_batch
        scaled = {name: part / (rows if name in BY_ROW else tokens) for name, part in parts.items()}
        loss: Any = sum(
            getattr(weights, str(WEIGHED.get(name, name))) * part for name, part in scaled.items()
        )
        for name, part in (scaled | {"loss": loss}).items():
            self.note(name, part.detach())
        self.languages.update(batch.paths)
        self.note("tokens", int(inputs["batch"].mask.sum()))
        self.note("responses", len(batch.response))
        # Wrappers for several processes average their gradients; the sum is what the normalisation means.
        loss = loss * self.args.world_size
        return (loss, None) if return_outputs else loss

    def note(self, name: str, amount: float | Tensor) -> None:
        """More of a count or of a part of the loss."""
        self.fresh[name] = self.fresh.get(name, 0) + amount

    def settle(self) -> dict[str, float]:
        """Bring together what all processes have noted since this was done last; returns the loss's parts."""
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
            counts = Path(str(output_dir or self.args.output_dir)) / "counts.json"
            counts.write_text(json.dumps(self.counts), encoding="utf-8")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir))
        try:
            with naming(folder):
                super()._save_checkpoint(*args, **kwargs)
        except RuntimeError as error:  # torch tells a full disk by a wrong position in its file
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            free = shutil.disk_usage(folder).free
            raise RunError(
                f"{folder}: a checkpoint could not be written; {free / 1e9:.1f} GB are free there: make room "
                "and run again"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.counts = json.loads((Path(resume_from_checkpoint) / "counts.json").read_text("utf-8"))


class Watch(TrainerCallback):
    """Writes a line of the learning curve per `every` steps and reports progress."""

    def __init__(self, curve: Path, stage: str, every: int, progress: Callable[[int, int], None]):
        self.curve, self.stage, self.every, self.progress = curve, stage, every, progress
        self.trainer: ResponseTrainer | None = None
        self.sums: dict[str, float] = {}
        self.since = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lines beyond the checkpoint that training resumes from are written again."""
        if not state.is_world_process_zero:
            return
        lines = self.curve.read_text("utf-8").split("\n") if self.curve.exists() else []
        # A killed process may have left its last line half written; a power cut, lines of nothing.
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        write_lines(
            self.curve, (e for e in entries if e["stage"] != self.stage or e["step"] <= state.global_step)
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        for name, value in self.trainer.settle().items():
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
    """A line of a learning curve; None where it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"stage", "step"} <= entry.keys() else None


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch: int,
    accumulate: int,
    lr: float,
    weight_decay: float,
    seed: int,
    bf16: bool,
    save_every: int,
    report_to: Sequence[str] = (),
) -> TrainingArguments:
    """What both stages share: AdamW, linear warm-up, cosine to zero, quiet, checkpoints that resume.

    Args:
        batch: Rows of an optimiser step, over accumulation and processes.
        accumulate: Parts in which a process reads its share of them, one after the other.
        report_to: Trackers, by transformers' names, that are shown the learning curve.

    Raises:
        ConfigError: A step's rows cannot be shared out evenly.
    """
    several = processes.count()
    rows, left = divmod(batch, accumulate * several)
    if left:
        many = f"{several} processes" if several > 1 else "one process"
        raise ConfigError(
            f"batch: {batch} rows a step are not to be had by {many} in {accumulate} equal parts each; "
            f"take a multiple of {accumulate * several}"
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulate,
        learning_rate=lr,
        weight_decay=weight_decay,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        max_grad_norm=1.0,
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
    """Run, or go on from the last whole checkpoint in the folder, if it is of the same rows.

    Args:
        say: Hears of checkpoints that are damaged and passed over, or of other rows.
    """
    watch.trainer = trainer
    trainer.add_callback(watch)
    forget_other_rows(folder, trainer.train_dataset, say)  # type: ignore[arg-type]
    checkpoint = last_whole(folder, say)
    # Not cuDNN's attention: its backward gives nan where a row's first positions are masked (torch 2.11).
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def forget_other_rows(folder: Path, rows: Ordered, say: Callable[[str], None]) -> None:
    """Remove the checkpoints of training on other rows, or in another order: the data may have changed since.

    Args:
        folder: Holds them, and from now on a hash of the rows.
        say: Hears of it.

    Raises:
        RunError: That hash is damaged.
    """
    digest = hashlib.sha256(repr(rows.order).encode())
    for sample in rows.samples:
        digest.update(repr((sample.encoded, sample.language, sample.meaning, sample.options)).encode())
    file, ours = folder / "rows.json", digest.hexdigest()
    remedy = f"remove {folder}, and training begins anew"
    before = read_json(file, "rows", remedy)["rows"] if file.exists() else ours
    processes.wait()  # until all have read it
    if processes.is_main():
        found = [path for path in folder.glob("checkpoint-*") if before != ours]
        for path in found:
            shutil.rmtree(path)
        if found:
            say("Warning: what is learned from has changed since training was stopped; it begins anew")
        write_json(file, {"rows": ours})
    processes.wait()


NEEDED = ("counts.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "*model*")
"""What a checkpoint consists of; transformers silently does without some of it."""


def last_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint that can be read; None: training begins anew.

    Every file is read to its end beforehand: a library that meets a damaged one while it loads may raise
    anything, and an EOFError, which command-line libraries take for Ctrl-D.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for one in reversed(found):
        fault = _fault(one)
        if fault is None:
            return one
        if fault:
            say(f"Warning: {fault}; training goes back to an earlier checkpoint, or to its beginning")
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: empty where a kill has left it unfinished; None: it is whole."""
    if not (checkpoint / "trainer_state.json").exists():  # which is written last
        return ""
    for pattern in NEEDED:
        if not any(checkpoint.glob(pattern)):
            return f"{checkpoint} has no {pattern}"
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text("utf-8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            elif file.suffix in (".pt", ".pth"):  # zip archives with checksums
                with ZipFile(file) as archive:
                    if (name := archive.testzip()) is not None:
                        return f"{file} is damaged at {name}"
        except (ValueError, BadZipFile, SafetensorError, OSError) as error:
            return f"{file} is damaged ({error})"
    return None
