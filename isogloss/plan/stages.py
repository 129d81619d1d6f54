"""Cost of stages 1 and 2 on a machine: FLOPs of every step, memory of the largest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isogloss.adapters.lora import TreeLora, lora_config
from isogloss.config import Distill
from isogloss.data.chat import encode_prompt
from isogloss.errors import DataError
from isogloss.languages import SOURCE
from isogloss.losses.fused import chunk_size, frozen_head
from isogloss.losses.topk import TopK
from isogloss.model.branches import attends_alone
from isogloss.model.cost import Meter
from isogloss.model.decoder import layers_of, text_config
from isogloss.plan.memory import options_bytes, parameter_bytes, read_bytes, step_bytes
from isogloss.plan.work import StagePlan, Work
from isogloss.teacher.reading import groups
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Sample
from isogloss.train.objective import Weights
from isogloss.train.order import english_order, training_order
from isogloss.train.stage2 import layer_of, weights_of

READ_TOGETHER = 64
"""Rows per forward pass of the teacher."""


# --- stage 1


def tune_plan(work: Work) -> StagePlan:
    """Plan stage 1: FLOPs of every step, memory of the largest."""
    settings, machine = work.config.tune, work.machine
    lengths = [row.tokens for row in work.english]
    if not lengths:
        raise DataError(
            "none of the English examples is left to tune on; see tune.selection and tune.max_tokens"
        )
    order = english_order(lengths, settings, work.config.seed)
    micro = _micro(order, settings.batch_size, settings.gradient_accumulation_steps, machine.devices)
    whole = settings.method == "full"
    model: nn.Module = work.model(torch.float32 if whole else work.dtype)
    trained = weights = parameter_bytes(model, parts=work.parts)
    if not whole:
        from peft import get_peft_model

        base = work.model(work.dtype)
        model = get_peft_model(base, lora_config(base, settings.lora_rank, targets="all-linear", scaling=2.0))
        trained = parameter_bytes(model, adapters=True)
    else:
        model.requires_grad_(True)
    found, meter = StagePlan("tune"), Meter(model, learns=whole)
    for numbers in micro:
        rows = [work.english[n] for n in numbers]
        width = max(lengths[n] for n in numbers)
        responses = sum(len(row.response) for row in rows)
        again = 2 if responses > chunk_size(model, machine.gpu) else 1
        _count(meter, len(rows), width, again * responses, taught=responses)
        found.tokens_forwarded += sum(lengths[n] for n in numbers)
    found.tokens_backpropagated = found.tokens_forwarded
    found.flops = meter.flops
    if settings.selection.keep < 1:
        _count_difficulty(found, work, model, lengths)
    # Full tuning is planned in float32. Autocast needs about a fifth less: it leaves some tensors in float32
    # and holds half-precision copies beside them.
    several = settings.gradient_accumulation_steps > 1
    step = max(
        step_bytes(
            model, [Sample(work.english[n]) for n in numbers], Weights(), gpu=machine.gpu, accumulated=several
        )
        for numbers in _largest(micro, lengths)
    )
    found.memory = {
        "program": machine.process,
        "weights": weights + (0 if whole else trained),
        "optimiser": 2 * trained,
        "activations": machine.held(step),
    }
    found.kept = sum(p.numel() for p in work.model(work.dtype).parameters()) * work.dtype.itemsize
    # A checkpoint has the trained weights and two moments; two are kept while a third is being written.
    found.disk = found.kept + 3 * 3 * trained
    return found


def _count_difficulty(found: StagePlan, work: Work, model: nn.Module, lengths: Sequence[int]) -> None:
    """Add the scoring of all examples, each with and without its instruction, before some are selected."""
    share, answers = work.scored / len(lengths), [len(row.response) for row in work.english]
    bare = len(encode_prompt(work.tokenizer, ""))
    for texts in (lengths, [bare + answer for answer in answers]):
        found.flops += share * _reading(model, texts, answers)
        found.tokens_forwarded += round(share * sum(texts))


# --- stage 2


def distill_plan(work: Work) -> StagePlan:
    """Plan stage 2: the teacher's forward passes and every training step; memory of the larger of the two."""
    settings, machine, rows = work.config.distill, work.machine, work.rows
    adapters = work.adapters()
    model, found = adapters.model, StagePlan("distill")
    meter = Meter(model, adapters.tree.path_rank() / max(1, adapters.tree.rank))
    # Otherwise, rows with options only have a cross-entropy loss.
    branches = settings.hears_itself and attends_alone(model)
    read = _read(rows, settings, branches)
    found.tokens_forwarded = read.tokens
    found.flops = sum(_reading(model, some) for some in read.privileged)
    found.flops += _reading(model, read.sets, read.options)
    # The twins' forward pass stops at the layer of the hidden-state term.
    share = 1.0 if work.parts > 1 else layer_of(model, settings) / len(layers_of(model))
    found.flops += share * _reading(model, read.twins)
    lengths = [row.tokens if branches else row.student.tokens for row in rows]
    order = training_order(rows, settings, work.config.seed)
    micro = _micro(order, settings.batch_size, settings.gradient_accumulation_steps, machine.devices)
    # In half precision on a CPU, the frozen head's product is computed twice to correct rounding.
    again = 2 if not machine.gpu and work.dtype.itemsize == 2 and frozen_head(model) else 1
    for numbers in micro:
        # A response that is one of the options is counted among them; the prompt's last token predicts the
        # first token of every option.
        taught = sum(
            1 + sum(len(one) - 1 for one in rows[n].options)
            if branches and rows[n].options
            else len(rows[n].student.response)
            for n in numbers
        )
        asked = sum(
            len(rows[n].student.response)
            for n in numbers
            if settings.form[0] == "hidden" and _is_scored(rows[n], settings)
        )
        width = max(lengths[n] for n in numbers)
        heads = again * (taught + asked)
        if all(rows[n].bare for n in numbers) and machine.devices == 1:  # stops at the term's layer
            meter.read(len(numbers), width, backward=True, depth=layer_of(model, settings))
            found.tokens_backpropagated += sum(lengths[n] for n in numbers)
            continue
        _count(meter, len(numbers), width, heads, taught=taught)
        found.tokens_backpropagated += sum(lengths[n] for n in numbers)
    found.tokens_forwarded += found.tokens_backpropagated
    found.flops += meter.flops
    found.memory = _distill_memory(work, adapters, micro, lengths, read, branches)
    learnt = parameter_bytes(model, adapters=True)
    share = learnt / max(1, adapters.tree.rank)
    exported = sum(
        share * sum(node.rank for node in adapters.tree.path(code)) for code in adapters.tree.languages
    )
    hidden = text_config(model).hidden_size
    # The tree is written in bfloat16, each language's adapter in float32.
    found.kept = round(learnt / 2 + exported) + _cached(read, settings, hidden, work.dtype.itemsize)
    found.disk = found.kept + 3 * 3 * learnt
    return found


@dataclass(frozen=True)
class _Reading:
    """Lengths in tokens of the texts that the frozen model processes before training."""

    privileged: list[list[int]]
    """Rows with privileged prompts, by group that is processed together."""
    sets: list[int]
    """English prompts with all answers of a closed set."""
    options: list[int]
    """Tokens of each of `sets` that go through the head."""
    twins: list[int]
    """English twins, which only run up to a layer."""
    responses: list[int]
    """Response tokens of each row in `privileged`."""
    answers: list[int]
    """Number of answers of each of `sets`."""

    @property
    def tokens(self) -> int:
        return sum(map(sum, (*self.privileged, self.sets, self.twins)))


def _read(rows: Sequence[Row], settings: Distill, branches: bool = True) -> _Reading:
    """Collect the texts as `stage2.read_signals` processes them, each once.

    Args:
        branches: Whether the model can read several answers in one row.
    """
    hears = settings.hears_itself
    alone = [r for r in rows if not r.bare and (r.language == SOURCE or (hears and not r.options))]
    sets = {(row.twin_prompt, row.twin_options) for row in rows if hears and branches and row.options}
    twins = {(row.twin_prompt, row.twin_mask) for row in rows if settings.similarity_weight}
    answers = {key: sum(map(len, key[1])) for key in sets}
    ordered = sorted(answers, key=lambda key: len(key[0]) + answers[key])
    return _Reading(
        _privileged(alone),
        [len(key[0]) + answers[key] for key in ordered],
        # The prompt's last token predicts the first token of every answer.
        [answers[key] - len(key[1]) + 1 for key in ordered],
        [len(prompt) for prompt, _ in twins],
        [len(response) for _, response in {(row.teacher_prompt, row.student.response) for row in alone}],
        [len(key[1]) for key in ordered],
    )


def _cached(texts: _Reading, settings: Distill, hidden: int, wide: int) -> int:
    """Return the bytes of the teacher's outputs on disk: values, and a key and a length for each text."""
    kind, k = settings.form
    values = sum(texts.responses) * (hidden * wide if kind == "hidden" else 4 * k)
    values += 4 * sum(texts.answers) + 4 * hidden * len(texts.twins)
    return values + 36 * (len(texts.responses) + len(texts.answers) + len(texts.twins))


def _privileged(rows: Sequence[Row]) -> list[list[int]]:
    """Return the lengths of the texts that the frozen teacher processes, by group that is processed together.

    Identical rows, and shared prompt prefixes, are processed once.
    """
    distinct = list({(row.teacher_prompt, row.student.response): row.language for row in rows}.items())
    found: list[list[int]] = []
    prompts, languages = [prompt for (prompt, _), _ in distinct], [code for _, code in distinct]
    for group, shared in groups(prompts, languages):
        found += [[shared]] if shared else []
        found.append([len(distinct[n][0][0]) - shared + len(distinct[n][0][1]) for n in group])
    return found


def _distill_memory(
    work: Work,
    adapters: TreeLora,
    micro: list[list[int]],
    lengths: list[int],
    texts: _Reading,
    branches: bool,
) -> dict[str, int]:
    settings, machine, rows = work.config.distill, work.machine, work.rows
    model = adapters.model
    hidden, wide = text_config(model).hidden_size, work.dtype.itemsize
    meanings = len({row.meaning for row in rows})
    kind, k = settings.form
    each = hidden * wide if kind == "hidden" else 8 * k
    scored_tokens = sum(len(row.student.response) for row in rows if _is_scored(row, settings))
    twins = (len(texts.twins) + meanings) * hidden * 4 * bool(settings.similarity_weight)
    signals = scored_tokens * each + twins
    loss = weights_of(model, settings, replay=True)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(settings.gradient_checkpointing)
    step = 0
    for numbers in _largest(micro, lengths):
        samples = [
            _sample(rows[n], place, settings, branches, hidden, work.dtype) for place, n in enumerate(numbers)
        ]
        bytes_held = step_bytes(model, samples, loss, adapters, twins=meanings, gpu=machine.gpu)
        step = max(step, bytes_held)
    model.eval()
    adapters.off()
    plain = ([length for some in texts.privileged for length in some], texts.twins)
    read = max(
        (read_bytes(model, min(READ_TOGETHER, len(some)), max(some)) for some in plain if some), default=0
    )
    if last := texts.options[-READ_TOGETHER:]:
        read = max(read, options_bytes(model, len(last), texts.sets[-1], sum(last), gpu=machine.gpu))
    learnt = parameter_bytes(model, adapters=True)
    weights = parameter_bytes(model, four_bit=work.config.four_bit, parts=work.parts)
    frozen = {"program": machine.process, "weights": weights, "adapters": learnt}
    reading = frozen | {"signals": signals, "activations": machine.held(read)}
    training = frozen | {"optimiser": 2 * learnt, "signals": signals, "activations": machine.held(step)}
    return max(reading, training, key=lambda memory: sum(memory.values()))


def _is_scored(row: Row, settings: Distill) -> bool:
    """Return whether a teacher scores a row's response token by token."""
    if row.bare:
        return False
    if row.language == SOURCE or settings.scored_elsewhere:
        return True
    return settings.hears_itself and not row.options


def _sample(
    row: Row, place: int, settings: Distill, branches: bool, hidden: int, dtype: torch.dtype
) -> Sample:
    tokens, (kind, k) = len(row.student.response), settings.form
    said: Tensor | TopK | None = None
    options = row.options if branches else ()
    with torch.device("meta"):
        if _is_scored(row, settings):
            said = torch.empty(tokens, hidden, dtype=dtype)
            if kind == "top_k":
                said = TopK(torch.empty(tokens, k, dtype=torch.int32), torch.empty(tokens, k))
        chances = torch.empty(len(options)) if options else None
        twin = torch.empty(hidden) if settings.similarity_weight else None
        signal = Signal(said, twin, options=chances)
        return Sample(row.student, row.language, place, signal, options)


# --- counts


def _count(meter: Meter, rows: int, width: int, heads: int, *, taught: int) -> None:
    """Add a step to the meter: the head processes `heads` tokens, of which `taught` have a gradient."""
    meter.read(rows, width, backward=True)
    meter.project(taught, backward=True)
    meter.project(heads - taught)


def _reading(model: nn.Module, lengths: Sequence[int], heads: Sequence[int] = ()) -> float:
    """Return the FLOPs of forward passes over texts, without adapters; `heads`: tokens through the head."""
    meter = Meter(model, 0.0)
    meter.project(sum(heads))
    ordered = sorted(lengths)
    for start in range(0, len(ordered), READ_TOGETHER):
        some = ordered[start : start + READ_TOGETHER]
        meter.read(len(some), some[-1])
    return meter.flops


def _micro(order: Sequence[int], batch: int, accumulate: int, devices: int) -> list[list[int]]:
    """Split the row indices into micro-batches as large as one device's."""
    size = max(1, math.ceil(batch / accumulate / devices))
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def _largest(micro: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Sequence[int]]:
    """Return the micro-batch with most tokens, padding included, and the one with the longest row."""

    def width(numbers: Sequence[int]) -> int:
        return max(lengths[n] for n in numbers)

    found = [max(micro, key=lambda numbers: len(numbers) * width(numbers)), max(micro, key=width)]
    return found[:1] if found[0] is found[1] else found
