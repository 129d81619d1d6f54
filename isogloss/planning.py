"""Preflight: what a run will cost, before anything runs and from shapes alone; needs no weights.

Flow: settings → the rows and batches that will be read → operations (by `cost.Meter`'s formulae) and, from
one step on tensors without storage, the bytes that are alive at once → time and fit on a machine → advice.

What is assumed, and where it is off:
    tokens      Exact where the model's tokenizer is at hand; else counted by the embedded one, and said so.
                Of more than `SAMPLE` English examples in stage 1 so many are, spread over all lengths.
    selection   `tune.selection.keep` drops the last items here, not the hardest.
    answers     Evaluation writes `evaluate.max_new_tokens` each time: a bound, as answers end before.
    attention   A GPU's fused attention is counted as plain products: a bound, near it at instruction lengths.
    seconds     Operations over the machine's rate of large products, times `EFFICIENCY`.
    devices     A step's rows are split over them; weights, carriers and signals lie on each. With `shard` the
                layers' weights lie in parts but for two layers, the one that is read and the next.
"""

import math
import random
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from isogloss.adapters.base import Carrier
from isogloss.adapters.fit import refuse_misfit
from isogloss.adapters.tree import Tree
from isogloss.config import Config, Count, Distill, Positive, Settings, with_overrides
from isogloss.data import selection
from isogloss.data.chat import Encoded, encode_prompt
from isogloss.data.counting import unchanging
from isogloss.data.examples import ParallelExample
from isogloss.data.sources import node_texts
from isogloss.defaults import explain, facts_of
from isogloss.errors import ConfigError
from isogloss.evaluate.suites import load_suite
from isogloss.languages import SOURCE
from isogloss.losses.fused import frozen_head
from isogloss.losses.topk import TopK
from isogloss.model import readout
from isogloss.model.attention import thrifty_attention
from isogloss.model.base_files import read_config
from isogloss.model.branches import branched_hidden
from isogloss.model.cost import Meter
from isogloss.model.load import (
    EMBEDDED,
    causal_of,
    check_base,
    decoder_of,
    head,
    last_hidden,
    layers_of,
    load_tokenizer,
    model_folder,
    pick_dtype,
)
from isogloss.model.standardise import Statistics
from isogloss.pipeline.stages import Run, Watcher, foreseen_rows
from isogloss.teacher.rows import Row, schedule, training_order
from isogloss.teacher.signals import LOGITS, Signal, groups
from isogloss.train.on_policy import is_on_policy
from isogloss.train.stage1 import english_rows, longest_row, lora_everywhere, within
from isogloss.train.stage2 import layer_of, weights_of
from isogloss.train.trainer import (
    WEIGHED,
    Batch,
    Options,
    Sample,
    Twins,
    Weights,
    batch_losses,
    chunk_size,
    collate,
)

T = TypeVar("T")

EFFICIENCY = 0.4
"""Share of the rate of large products that a step reaches; an assumption, which a machine's file may set."""
SAMPLE = 8_000
"""English examples of stage 1 that are encoded; of more, the others are taken to be as long as these: right
within 1 %."""
READ_TOGETHER = 64
"""Rows per forward of the teacher."""
CONTEXT = 600 << 20
"""Bytes that a GPU's context and its products' workspace take; an assumption."""
HEAP = 1.3
"""Without a GPU: bytes that the C library's heap holds for each byte of tensors that come and go; 1.2 to 1.4
was seen. An assumption."""
GIB = 1 << 30


class MachineFile(Settings):
    """A machine that is not this one."""

    devices: Count = 1
    """How many."""
    memory_gib: Positive
    """Memory of each device, in GiB."""
    tflops: Positive
    """Rate of large products on each device in the weights' type, in 10^12 operations a second."""
    efficiency: Positive = EFFICIENCY
    """Share of this rate that a step reaches."""
    gpu: bool = True
    """Whether the devices are GPUs: weights are then bfloat16 unless `dtype` says otherwise."""


@dataclass(frozen=True)
class Machine:
    """What a plan is made for; bytes, and operations a second, of each device."""

    name: str
    devices: int
    memory: int
    rate: float
    gpu: bool
    efficiency: float = EFFICIENCY
    process: int = CONTEXT
    """Bytes that the program takes on a device before it has a model."""

    def held(self, alive: int) -> int:
        """Bytes held for tensors of which at most `alive` bytes are needed at once."""
        return alive if self.gpu else round(HEAP * alive)

    def dtype(self, asked: str) -> torch.dtype:
        """The type of frozen weights there."""
        return torch.bfloat16 if asked == "auto" and self.gpu else pick_dtype(asked)


def load_machine(path: Path) -> Machine:
    """A machine from a YAML file: devices, memory_gib, tflops, efficiency, gpu.

    Raises:
        ConfigError: The file is missing or says something else.
    """
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--machine: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {getattr(error, 'problem', error)}") from None
    try:
        said = MachineFile.model_validate(entries)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "a machine"
        raise ConfigError(
            f"{path}: {where}: {fault['msg']}; there are {', '.join(MachineFile.model_fields)}"
        ) from None
    process = CONTEXT if said.gpu else psutil.Process().memory_info().rss
    return Machine(
        path.stem, said.devices, round(said.memory_gib * GIB), said.tflops * 1e12, said.gpu,
        said.efficiency, process,
    )  # fmt: skip


def this_machine(dtype: str = "auto") -> Machine:
    """This machine, its rate measured for about a second."""
    gpu = torch.cuda.is_available()
    if gpu:
        memory, devices = torch.cuda.get_device_properties(0).total_memory, torch.cuda.device_count()
    else:
        memory, devices = psutil.virtual_memory().total, 1
    kind = pick_dtype(dtype)
    process = CONTEXT if gpu else psutil.Process().memory_info().rss
    return Machine("this machine", devices, memory, measured_rate(kind), gpu, process=process)


def measured_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of a large product, the best of as many as fit into the time, two at least."""
    gpu = torch.cuda.is_available()
    size = 8192 if gpu else 1024
    a = torch.randn(size, size, device="cuda" if gpu else "cpu").to(dtype)
    ends, best, done = time.monotonic() + seconds, math.inf, 0
    while done < 2 or time.monotonic() < ends:
        began = time.monotonic()
        _ = a @ a
        if gpu:
            torch.cuda.synchronize()
        best, done = min(best, time.monotonic() - began), done + 1
    return 2 * size**3 / best


@dataclass
class StagePlan:
    """What a stage will cost; memory is each device's, in bytes, by what holds it, at its fullest moment."""

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    flops: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    """Bytes written that are there together at some moment, checkpoints included."""
    kept: int = 0
    """Bytes that stay."""

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


@dataclass
class Plan:
    """All stages of a run on a machine."""

    machine: Machine
    stages: list[StagePlan]
    notes: list[str]
    advice: list[str] = field(default_factory=list)
    """One line for each stage that does not fit: what to change."""
    settings: list[str] = field(default_factory=list)
    """What the settings that follow the model are, and why."""

    def seconds(self, stage: StagePlan) -> float:
        """How long a stage takes."""
        machine = self.machine
        return stage.flops / (machine.rate * machine.efficiency * machine.devices)

    @property
    def fits(self) -> bool:
        return not self.advice

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {**vars(stage), "memory_bytes": stage.memory_bytes, "seconds": round(self.seconds(stage), 1)}
            for stage in self.stages
        ]
        return {
            "machine": vars(self.machine), "stages": stages, "fits": self.fits, "advice": self.advice,
            "notes": self.notes, "settings": self.settings,
        }  # fmt: skip


def plan(config: Config, machine: Machine) -> Plan:
    """What each stage of a run costs on a machine, and what to change where one does not fit.

    Raises:
        DataError: Data, a language or a suite is missing.
        ConfigError: The model's shapes are not to be had, or the settings do not fit them.
    """
    refuse_misfit(config)
    work = Work(config, machine)
    stages = [tune_plan(work), distill_plan(work), evaluate_plan(work)]
    found = Plan(machine, stages, work.notes)
    if config.distill.teacher.type != "self":
        found.notes.append("distill.teacher: what another teacher's own reading costs is not counted")
    if config.distill.gradient_checkpointing:
        found.notes.append("distill.gradient_checkpointing: the second forward's arithmetic is not counted")
    if config.compile:
        found.notes.append(
            "compile: less memory is held than is planned; the time of compiling is not counted"
        )
    if config.distill.responses == "teacher":
        found.notes.append("distill.responses: what the model's English answers cost is not counted")
    if config.distill.carrier.type != "lora":
        found.notes.append("distill.carrier: the arithmetic of virtual positions is not counted")
    found.settings = explain(config, facts_of(work.model(work.dtype)))
    found.advice = [
        advise(work, stage) for stage in found.stages if stage.memory_bytes > machine.memory
    ]  # fmt: skip
    return found


class Work:
    """What a run will read, and the shapes that it is read with."""

    def __init__(self, config: Config, machine: Machine):
        self.config, self.machine = config, machine
        # Foretold from the settings alone: what an earlier run left in the folder has no say.
        self.run = Run(config.model_copy(update={"run": config.run / "planned"}), Watcher())
        self.dtype = machine.dtype(config.dtype)
        self.notes: list[str] = []
        self.tokenizer = unchanging(self._tokenizer())

    def changed(self, overrides: Iterable[str]) -> "Work":
        """The same reading under other settings of how it is batched and trained."""
        other = object.__new__(Work)
        other.__dict__ |= self.__dict__ | {"config": with_overrides(self.config, overrides)}
        other.dtype = self.machine.dtype(other.config.dtype)
        return other

    @cached_property
    def english(self) -> list[Encoded]:
        """Rows of stage 1."""
        settings, examples = self.config.tune, self.run.english
        if settings.selection.enabled:
            examples = list(selection.select(examples, max_chars=settings.selection.max_chars).kept)
        limit = longest_row(self.config)
        examples = within(examples, self.tokenizer, limit).kept
        kept = examples[: max(1, round(settings.selection.keep * len(examples)))]
        seed, texts = self.config.seed, node_texts(self.config)
        # The examples that `english_rows` would draw of all: its draw of a sample has other lengths.
        drawn = random.Random(seed).sample(kept, round(settings.privileged * len(kept)))
        found: list[Encoded] = []
        for examples, again in ((kept, 0.0), (drawn, 1.0)):
            sample = spread(examples, SAMPLE)
            rows = english_rows(sample, self.tokenizer, texts, again, seed, limit)
            rows = rows[len(sample) :] if again else rows
            rows.sort(key=lambda row: len(row.prompt) + len(row.response))
            found += stretched(rows, round(len(rows) * len(examples) / max(1, len(sample))))
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of stage 2."""
        return foreseen_rows(self.run, self.tokenizer)

    @cached_property
    def tree(self) -> Tree:
        return self.run.tree

    @property
    def parts(self) -> int:
        """Over how many devices the frozen layers are split."""
        return self.machine.devices if self.config.shard else 1

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model without storage."""
        return meta_model(self.config.model, dtype, gpu=self.machine.gpu)

    def carrier(self) -> Carrier:
        run = Run(self.config, Watcher())
        return run.student(self.model(self.dtype), trained=False, tree=self.tree)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        folder = Path(model_folder(self.config.model))
        files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")
        if folder.is_dir() and not any((folder / name).exists() for name in files):
            self.notes.append(f"{self.config.model} has no tokenizer: tokens are counted by the embedded one")
            return load_tokenizer(EMBEDDED)
        tokenizer = self.run.base_tokenizer
        check_base(self.config.model, tokenizer, weights=False)
        return tokenizer


def spread(examples: Sequence[ParallelExample], most: int) -> list[ParallelExample]:
    """So many of the examples, of all lengths in English alike, the longest among them."""
    if len(examples) <= most:
        return list(examples)

    def length(example: ParallelExample) -> int:
        turn = example.turns[SOURCE]
        return len(turn.instruction) + len(turn.response or "")

    ordered = sorted(examples, key=length)
    return [ordered[len(ordered) - 1 - n * (len(ordered) - 1) // (most - 1)] for n in range(most)]


def stretched(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """So many rows in the place of a sample, each of its rows standing for those of like length."""
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    return [ordered[(2 * n + 1) * len(ordered) // (2 * count)] for n in range(count)]


def meta_model(name: str, dtype: torch.dtype, *, gpu: bool) -> PreTrainedModel:
    """A model of a folder's or hub name's shapes, without storage, attention as `load_model` would take it.

    Raises:
        ConfigError: There is no config.json.
    """
    folder = model_folder(name)
    try:
        config = read_config(name, folder)
    except OSError as error:
        raise ConfigError(f"model: {name} has no config.json that transformers reads") from error
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa" if gpu else "eager"
        )
    return model.eval()


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, now and at most; views and parameters cost nothing.

    Autograd's saved tensors, gradients and the products' own intermediate results are among them.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._there: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0  # a question about values, such as whether no token is padding, is answered no
        made = func(*args, **kwargs)
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._there:
                    self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._there.pop(key, None)

        self._there[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def step_bytes(
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Weights,
    carrier: Carrier | None = None,
    *,
    twins: int = 0,
    gpu: bool = False,
) -> int:
    """Most bytes that a micro-batch's forward, losses and backward hold at once, gradients included.

    Args:
        model: Without storage; for stage 2 the carrier's.
        twins: How many meanings there are in all.
        gpu: It will be done on one.
    """
    batch = _without_storage(collate(samples, 0))
    known, every = [s.signal.twin for s in samples if s.signal is not None], None
    if known:
        with torch.device("meta"):
            none = Statistics(torch.empty(len(known[0])), torch.empty(len(known[0])))
            vectors = torch.empty(max(twins, len(known)), len(known[0]))
            every = Twins(vectors, {False: none, True: none})
    readout(model)  # is looked for once, long before a step
    with Alive() as alive, thrifty_attention(model):
        parts = batch_losses(model, batch, weights, carrier, every, gpu=gpu)
        loss: Any = sum(getattr(weights, WEIGHED.get(name, name)) * part for name, part in parts.items())
        loss.backward()
    model.zero_grad(set_to_none=True)
    return alive.most


@torch.no_grad()
def read_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Most bytes that reading a batch holds at once, head aside."""
    with Alive() as alive:
        last_hidden(
            model, torch.zeros(rows, width, dtype=torch.long, device="meta"),
            torch.ones(rows, width, dtype=torch.long, device="meta"),
        )  # fmt: skip
    return alive.most


@torch.no_grad()
def options_bytes(model: nn.Module, rows: int, width: int, tokens: int) -> int:
    """Most bytes that reading a batch of answer sets holds at once.

    Args:
        width: Tokens of the longest prompt with all its answers.
        tokens: Of all answers, a chunk of whose logits is held.
    """
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    vocab = causal_of(model).config.get_text_config().vocab_size
    with Alive() as alive:
        states = branched_hidden(model, ids, ids, ids).flatten(0, 1)[: min(tokens, max(1, LOGITS // vocab))]
        head(model, states).float().logsumexp(1)
    return alive.most


@torch.no_grad()
def cache_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Bytes that the model itself keeps of what it has read: keys and values, windows of them, or states."""
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    with Alive():  # which answers what a decoder asks about values
        found: Any = decoder_of(model)(input_ids=ids, use_cache=True)
    kept = getattr(found, "past_key_values", None) or getattr(found, "cache_params", None)
    return sum(tensor.nbytes for tensor in _tensors(kept, set()) if tensor.is_floating_point())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in a cache, each once, whatever its class calls it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:  # a single number, such as the length of a window, is no state
            yield value
    elif isinstance(value, Mapping):
        yield from (one for each in value.values() for one in _tensors(each, seen))
    elif isinstance(value, list | tuple):
        yield from (one for each in value for one in _tensors(each, seen))
    elif type(value).__module__.startswith("transformers.") and not isinstance(value, PretrainedConfig):
        yield from _tensors(vars(value), seen)


def _without_storage(batch: Batch) -> Batch:
    """Masks of rows and tokens stay as they are: they decide shapes."""
    entries: dict[str, Any] = {
        name: value.to(torch.device("meta"))
        if isinstance(value, Options) or (isinstance(value, Tensor) and value.dtype != torch.bool)
        else value
        for name, value in vars(batch).items()
    }
    return Batch(**entries)


def parameter_bytes(
    model: nn.Module, *, carriers: bool = False, four_bit: bool = False, parts: int = 1
) -> int:
    """Bytes of the frozen weights, tied ones once; or those of the carriers.

    Args:
        four_bit: Linear layers below the head hold 4 bits a weight, 8 for each 64 of them, 32 for each 256 of
            those (Dettmers et al. 2023, arXiv:2305.14314, section 3).
        parts: Processes over which the layers' frozen weights are split.
    """
    packed = set()
    if four_bit:
        linear = (m for m in layers_of(model).modules() if isinstance(m, nn.Linear))
        packed = {id(m.weight) for m in linear}
    each = 4 / 8 + 1 / 64 + 4 / (64 * 256)
    total = sum(
        p.numel() * (each if id(p) in packed else p.element_size())
        for n, p in model.named_parameters()
        if ("lora_" in n or n.startswith("rows.")) == carriers
    )
    if parts > 1 and not carriers:
        layers = [
            sum(p.nbytes for n, p in layer.named_parameters() if "lora_" not in n)
            for layer in layers_of(model)
        ]
        total -= sum(layers) * (1 - 1 / parts)
        total += sum(sorted(layers)[-2:])
    return round(total)


# --- stage 1


def tune_plan(work: Work) -> StagePlan:
    """Stage 1: operations of every step, memory of its largest."""
    settings, machine = work.config.tune, work.machine
    lengths = [len(row.prompt) + len(row.response) for row in work.english]
    draws = max(settings.batch, round(len(lengths) * settings.epochs))
    order = schedule(
        [SOURCE] * len(lengths), draws, balance=1.0, batch=settings.batch, alike=lengths,
        seed=work.config.seed,
    )  # fmt: skip
    micro = _micro(order, settings.batch, settings.accumulate, machine.devices)
    whole = settings.method == "full"
    model: nn.Module = work.model(torch.float32 if whole else work.dtype)
    trained = weights = parameter_bytes(model, parts=work.parts)
    if not whole:
        from peft import get_peft_model

        base = work.model(work.dtype)
        model = get_peft_model(base, lora_everywhere(base, settings.lora_rank))
        trained = parameter_bytes(model, carriers=True)
    else:
        model.requires_grad_(True)
    found, meter = StagePlan("tune"), Meter(model, learns=whole)
    for numbers in micro:
        rows = [work.english[n] for n in numbers]
        width = max(lengths[n] for n in numbers)
        responses = sum(len(row.response) for row in rows)
        again = 2 if responses > chunk_size(model, machine.gpu) else 1
        _count(meter, len(rows), width, again * responses, backward=True, taught=responses)
        found.tokens_forwarded += sum(lengths[n] for n in numbers)
    found.tokens_backpropagated = found.tokens_forwarded
    found.flops = meter.flops
    if work.config.tune.selection.keep < 1:
        found.flops += 2 * _reading(model, lengths, READ_TOGETHER)
        found.tokens_forwarded += 2 * sum(lengths)
    # Autocast holds copies beside what it leaves in float32: about a fifth less than float32 alone.
    step = max(
        step_bytes(model, [Sample(work.english[n]) for n in numbers], Weights(), gpu=machine.gpu)
        for numbers in _largest(micro, lengths)
    )
    found.memory = {
        "program": machine.process, "weights": weights + (0 if whole else trained),
        "optimiser": 2 * trained, "activations": machine.held(step),
    }  # fmt: skip
    found.kept = sum(p.numel() for p in work.model(work.dtype).parameters()) * work.dtype.itemsize
    # A checkpoint has what learns and two moments of it; two are kept, and one is written before one goes.
    found.disk = found.kept + 3 * 3 * trained
    return found


# --- stage 2


def distill_plan(work: Work) -> StagePlan:
    """Stage 2: the teacher's reading, then every step; memory of the fuller of the two."""
    settings, machine, rows = work.config.distill, work.machine, work.rows
    carrier = work.carrier()
    model, found = carrier.model, StagePlan("distill")
    meter = Meter(model, carrier.tree.path_rank() / max(1, carrier.tree.rank))
    live, hears = Meter(model, 0.0), settings.hears_itself
    read = _read(rows, settings)
    found.tokens_forwarded = read.tokens
    found.flops = sum(_reading(model, some, READ_TOGETHER, off=True) for some in read.privileged)
    found.flops += _reading(model, read.sets, READ_TOGETHER, off=True, heads=read.options)
    # The twins' states are read up to a layer.
    share = 1.0 if work.parts > 1 else layer_of(model, settings) / len(layers_of(model))
    found.flops += share * _reading(model, read.twins, READ_TOGETHER, off=True)
    others = [_options(row, hears) for row in rows]
    lengths = [
        len(row.student.prompt) + len(row.student.response) + sum(map(len, more))
        for row, more in zip(rows, others, strict=True)
    ]
    order = training_order(rows, settings, work.config.seed)
    micro = _micro(order, settings.batch, settings.accumulate, machine.devices)
    # In half precision a processor makes the frozen head's product again, for what was rounded.
    again = 2 if not machine.gpu and work.dtype.itemsize == 2 and frozen_head(model) else 1
    for number, numbers in enumerate(micro):
        taught = sum(len(rows[n].student.response) for n in numbers)
        # Beside its cross-entropy an answer is one of the options that are scored.
        taught += sum(len(o) for n in numbers if others[n] for o in rows[n].options)
        if is_on_policy(number * len(micro[0]) // settings.batch, settings.on_policy):
            _draw(found, meter, live, [rows[n] for n in numbers])
        asked = sum(
            len(rows[n].student.response)
            for n in numbers
            if settings.form[0] == "hidden"
            and (rows[n].language == SOURCE or (settings.kl and not others[n]))
        )
        width = max(lengths[n] for n in numbers)
        heads = again * (taught + asked)
        if all(rows[n].bare for n in numbers) and machine.devices == 1:  # read up to the term's layer
            meter.read(len(numbers), width, backward=True, depth=layer_of(model, settings))
            found.tokens_backpropagated += sum(lengths[n] for n in numbers)
            continue
        _count(meter, len(numbers), width, heads, backward=True, taught=taught)
        found.tokens_backpropagated += sum(lengths[n] for n in numbers)
    found.tokens_forwarded += found.tokens_backpropagated
    found.flops += meter.flops + live.flops
    found.memory = _distill_memory(work, carrier, micro, lengths, read)
    carriers = parameter_bytes(model, carriers=True)
    share = carriers / max(1, carrier.tree.rank)
    exported = sum(
        share * sum(node.rank for node in carrier.tree.path(code)) for code in carrier.tree.languages
    )
    found.kept = round(carriers + exported)
    found.disk = found.kept + 3 * 3 * carriers
    return found


@dataclass(frozen=True)
class _Reading:
    """What the frozen model reads before training, in tokens of each text."""

    privileged: list[list[int]]
    """Behind privileged prompts, those together that are read together,"""
    sets: list[int]
    """English prompts with all answers of a closed set,"""
    options: list[int]
    """of which answers are,"""
    twins: list[int]
    """and English twins, up to a layer."""

    @property
    def tokens(self) -> int:
        return sum(map(sum, (*self.privileged, self.sets, self.twins)))


def _read(rows: Sequence[Row], settings: Distill) -> _Reading:
    """As `stage.read_signals` reads the rows: each text once."""
    hears = settings.hears_itself
    alone = [r for r in rows if not r.bare and (r.language == SOURCE or (hears and not r.options))]
    sets = {(row.twin_prompt, row.twin_options) for row in rows if hears and row.options}
    twins = {(row.twin_prompt, row.twin_asked) for row in rows}
    answers = {key: sum(map(len, key[1])) for key in sets}
    ordered = sorted(answers, key=lambda key: len(key[0]) + answers[key])
    return _Reading(
        _privileged(alone),
        [len(key[0]) + answers[key] for key in ordered],
        [answers[key] for key in ordered],
        [len(prompt) for prompt, _ in twins],
    )


def _options(row: Row, hears: bool) -> list[tuple[int, ...]]:
    """The answers that stand behind a row's own response while it trains."""
    return [one for one in row.options if one != row.student.response] if hears else []


def _privileged(rows: Sequence[Row]) -> list[list[int]]:
    """Tokens of every text that the frozen teacher reads, those together that are read together.

    Equal rows are read once, and so is what prompts begin with.
    """
    distinct = list({(row.teacher_prompt, row.student.response): row.language for row in rows}.items())
    found: list[list[int]] = []
    prompts, languages = [prompt for (prompt, _), _ in distinct], [code for _, code in distinct]
    for group, shared in groups(prompts, languages, True):
        found += [[shared]] if shared else []
        found.append([len(distinct[n][0][0]) - shared + len(distinct[n][0][1]) for n in group])
    return found


def _draw(found: StagePlan, meter: Meter, live: Meter, rows: Sequence[Row]) -> None:
    """The rows' responses drawn, as long as the data's, and read by the live teacher."""
    for row in rows:
        if row.language != SOURCE:
            _generated(meter, len(row.student.prompt), len(row.student.response))
            found.tokens_generated += len(row.student.response)
            found.tokens_forwarded += len(row.student.prompt) + len(row.student.response)
    lengths = [len(row.teacher_prompt) + len(row.student.response) for row in rows]
    _count(live, len(rows), max(lengths), 0)
    found.tokens_forwarded += sum(lengths)


def _distill_memory(
    work: Work,
    carrier: Carrier,
    micro: list[list[int]],
    lengths: list[int],
    texts: _Reading,
) -> dict[str, int]:
    settings, machine, rows = work.config.distill, work.machine, work.rows
    model = carrier.model
    causal: Any = model.get_base_model()
    hidden, wide = causal.config.get_text_config().hidden_size, work.dtype.itemsize
    meanings = len({row.meaning for row in rows})
    kind, k = settings.form
    each = hidden * wide if kind == "hidden" else 8 * k
    told = sum(len(row.student.response) for row in rows if _is_told(row, settings))
    signals = told * each + (len(texts.twins) + meanings) * hidden * 4
    loss = weights_of(model, settings, retain=True)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(settings.gradient_checkpointing)
    step = 0
    for numbers in _largest(micro, lengths):
        samples = [_sample(rows[n], place, settings, hidden, work.dtype) for place, n in enumerate(numbers)]
        bytes_held = step_bytes(
            model, samples, loss, carrier, twins=meanings, gpu=machine.gpu
        )  # fmt: skip
        step = max(step, bytes_held)
    model.eval()
    carrier.off()
    plain = ([length for some in texts.privileged for length in some], texts.twins)
    read = max(
        (read_bytes(model, min(READ_TOGETHER, len(some)), max(some)) for some in plain if some), default=0
    )
    if last := texts.options[-READ_TOGETHER:]:
        read = max(read, options_bytes(model, len(last), texts.sets[-1], sum(last)))
    learnt = parameter_bytes(model, carriers=True)
    weights = parameter_bytes(model, four_bit=work.config.four_bit, parts=work.parts)
    frozen = {"program": machine.process, "weights": weights, "carriers": learnt}
    reading = frozen | {"signals": signals, "activations": machine.held(read)}
    training = frozen | {"optimiser": 2 * learnt, "signals": signals, "activations": machine.held(step)}
    return max(reading, training, key=lambda memory: sum(memory.values()))


def _is_told(row: Row, settings: Distill) -> bool:
    """Whether a teacher scores a row's response token by token."""
    if row.bare:
        return False
    if row.language == SOURCE or settings.scored_elsewhere:
        return True
    return settings.hears_itself and not row.options


def _sample(row: Row, place: int, settings: Distill, hidden: int, dtype: torch.dtype) -> Sample:
    tokens, (kind, k) = len(row.student.response), settings.form
    said: Tensor | TopK | None = None
    options = row.options if settings.hears_itself else ()
    with torch.device("meta"):
        # On-policy steps are scored live.
        if not row.bare and (row.language == SOURCE or (settings.kl and not options)):
            said = torch.empty(tokens, hidden, dtype=dtype)
            if kind == "top_k":
                said = TopK(torch.empty(tokens, k, dtype=torch.int32), torch.empty(tokens, k))
        chances = torch.empty(len(options)) if options else None
        signal = Signal(said, torch.empty(hidden), options=chances)
        return Sample(row.student, row.language, place, signal, options)


# --- evaluation


def evaluate_plan(work: Work) -> StagePlan:
    """Every answer before and after, and the sentences' embeddings."""
    settings, run, machine = work.config.evaluate, work.run, work.machine
    carrier = work.carrier()
    model, found = carrier.model, StagePlan("evaluate")
    causal: Any = model.get_base_model()
    config = causal.config.get_text_config()
    before = Meter(causal, 0.0)
    after = Meter(causal, carrier.tree.path_rank() / max(1, carrier.tree.rank))
    sides, longest, answers = (before, after), 1, settings.max_new_tokens
    for name in settings.suites:
        suite = load_suite(name, run.data_root, settings, run.measured)
        prompts = [
            len(encode_prompt(work.tokenizer, item.turns[code].instruction))
            for item in suite.items
            for code in (*run.measured, SOURCE)
            if code in item.turns
        ]
        longest = max([longest, *prompts])
        for side in sides:
            for prompt in prompts:
                _generated(side, prompt, answers)
        found.tokens_forwarded += 2 * (sum(prompts) + len(prompts) * (answers - 1))
        found.tokens_generated += 2 * len(prompts) * answers
        for sentences in (suite.sentences, suite.layer_sentences):
            for code, texts in sentences.items():
                if code in (*run.measured, SOURCE):
                    sizes = [len(ids) for ids in work.tokenizer(list(texts))["input_ids"]]
                    for side in sides:
                        for size in sizes:
                            side.read(1, size, depth=settings.layer)
                    found.tokens_forwarded += 2 * sum(sizes)
    found.flops = before.flops + after.flops
    width = longest + settings.max_new_tokens
    carrier.off()
    found.memory = {
        "program": machine.process, "weights": parameter_bytes(model, four_bit=work.config.four_bit),
        "carriers": parameter_bytes(model, carriers=True),
        "cache": cache_bytes(causal, settings.batch, width),
        "activations": machine.held(
            read_bytes(model, settings.batch, longest)
            + settings.batch * config.vocab_size * (work.dtype.itemsize + 4)
        ),
    }  # fmt: skip
    return found


# --- counts


def _count(
    meter: Meter, rows: int, width: int, heads: int, *, backward: bool = False, taught: int = 0
) -> None:
    """A batch into the meter; of what the head reads, so many tokens have a gradient."""
    meter.read(rows, width, backward=backward)
    meter.project(taught, backward=backward)
    meter.project(heads - taught)


def _generated(meter: Meter, prompt: int, new: int) -> None:
    """The prompt once, then a token a time, each against all before it."""
    meter.read(1, prompt)
    for seen in range(prompt + 1, prompt + new):
        meter.read(1, 1, seen=seen)
    meter.project(new)


def _reading(
    model: nn.Module,
    lengths: Sequence[int],
    together: int,
    *,
    off: bool = False,
    heads: Sequence[int] = (),
) -> float:
    """Operations of reading texts, those of like length together; of each the head reads so many tokens."""
    meter = Meter(model, 0.0 if off else 1.0)
    meter.project(sum(heads))
    ordered = sorted(lengths)
    for start in range(0, len(ordered), together):
        some = ordered[start : start + together]
        _count(meter, len(some), some[-1], 0)
    return meter.flops


def _micro(order: Sequence[int], batch: int, accumulate: int, devices: int) -> list[list[int]]:
    """Row numbers of every micro-batch of a device."""
    size = max(1, math.ceil(batch / accumulate / devices))
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def _largest(micro: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Sequence[int]]:
    """The micro-batch of most tokens, padding included, and the one with the longest row."""

    def width(numbers: Sequence[int]) -> int:
        return max(lengths[n] for n in numbers)

    found = [max(micro, key=lambda numbers: len(numbers) * width(numbers)), max(micro, key=width)]
    return found[:1] if found[0] is found[1] else found


# --- advice

STAGES: dict[str, Callable[[Work], StagePlan]] = {
    "tune": tune_plan,
    "distill": distill_plan,
    "evaluate": evaluate_plan,
}


def advise(work: Work, stage: StagePlan) -> str:
    """What to change so that a stage fits: the first of the settings tried, from the mildest on."""
    needs, has = stage.memory_bytes / GIB, work.machine.memory / GIB
    least, best = needs, ()
    for changes in _changes(work, stage.stage):
        found = STAGES[stage.stage](work.changed(changes)).memory_bytes
        if found <= work.machine.memory:
            return (
                f"{stage.stage} needs {needs:.1f} GiB and a device has {has:.1f}: set {' '.join(changes)} "
                f"({found / GIB:.1f} GiB)"
            )
        if found / GIB < least:
            least, best = found / GIB, changes
    with_best = f"; with {' '.join(best)} a device of {math.ceil(least)} GiB would do" if best else ""
    return (
        f"{stage.stage} needs {needs:.1f} GiB and a device has {has:.1f}: no setting makes it fit; take "
        f"larger devices or a smaller model{with_best}"
    )


def _changes(work: Work, stage: str) -> list[tuple[str, ...]]:
    """Settings to try, the mildest first."""
    config = work.config
    if stage == "evaluate":
        sizes = [config.evaluate.batch // n for n in (2, 4, 8, 16, 32, 64) if config.evaluate.batch // n]
        return [(f"evaluate.batch={size}",) for size in sizes]
    batch, now = getattr(config, stage).batch, getattr(config, stage).accumulate
    smaller = [(f"{stage}.accumulate={n}",) for n in range(now + 1, batch + 1) if batch % n == 0]
    smaller = smaller[:: max(1, len(smaller) // 3)] + smaller[-1:] if len(smaller) > 4 else smaller
    more: list[tuple[str, ...]] = []
    if stage == "tune" and config.tune.method == "full":
        more.append(("tune.method=lora",))
    several = work.machine.devices > 1 and not (config.shard or config.four_bit or config.distill.on_policy)
    if stage == "tune" and several:
        more.append(("tune.method=lora", "shard=true"))
    if stage == "distill":
        distill = config.distill
        helps = {  # prefixes refuse the first, processors the last
            "distill.gradient_checkpointing=true": not distill.gradient_checkpointing
            and distill.carrier.type != "prefix",
            "dtype=bfloat16": work.dtype == torch.float32,
            "four_bit=true": not (config.four_bit or config.shard) and work.machine.gpu,
            "shard=true": several and config.tune.method == "lora",
        }
        more += [(change,) for change, can in helps.items() if can]
    last = smaller[-1:] or [()]
    return [*smaller, *more, *((*some, *last[0]) for some in more)]
