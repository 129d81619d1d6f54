"""The whole job: English tuning → distillation into the tree → evaluation → report.

Each stage leaves its result in the run folder, whole, and is skipped when it is already there; so
running again resumes, or says that the run is complete.
"""

import hashlib
import json
import math
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, wraps
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import bases, bundle, processes
from isogloss.config import Config, Evaluate, ModelTeacher, dump_config, load_config, root_of_environment
from isogloss.cost import TEACHER, Ledger, Stage, spending
from isogloss.data import selection
from isogloss.data.chat import encode_prompt, encode_response
from isogloss.data.counting import unchanging
from isogloss.data.draw import choose, labels_of
from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import nearest
from isogloss.data.parallel_text import Pair, pairs_for, translation_examples
from isogloss.data.reading import read_answer
from isogloss.data.sources import (
    divisions,
    english_examples,
    lacking,
    left_out,
    node_texts,
    nothing_in,
    parallel_examples,
    told,
)
from isogloss.data.templates import template_name
from isogloss.distill.cache import Cache, teacher_of
from isogloss.distill.rows import Row, build_rows, sentence_rows
from isogloss.distill.stage import Bar, distil, read_signals
from isogloss.errors import ConfigError, DataError, RunError
from isogloss.evaluate import runner, tasks, transfer
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.leaks import Leak, Text, find_leaks, texts_of, trained_texts
from isogloss.evaluate.signature import RULER, data_hashes, fields_of, settings_fields, signature
from isogloss.evaluate.suites import SUITES, load_suite
from isogloss.files import (
    content_hash,
    locked,
    naming,
    read_json,
    read_lines,
    replacing,
    write_json,
    write_lines,
    write_text,
)
from isogloss.languages import SOURCE, languages
from isogloss.model import (
    causal_of,
    check_base,
    check_length,
    check_machine,
    layers_of,
    load_model,
    load_tokenizer,
    pad_id,
    parts_of,
    pick_dtype,
    skeleton,
)
from isogloss.modes import check_compiler
from isogloss.report.page import write_report
from isogloss.teacher import joining
from isogloss.teacher.answered import TOGETHER, Answers, ended
from isogloss.teacher.gain import Gain, gains
from isogloss.teacher.scored import Scored
from isogloss.tracking import check_installed, tracking
from isogloss.tree.carrier import Carrier
from isogloss.tree.fit import lora_shape, refuse_misfit
from isogloss.tree.lora import TreeLora
from isogloss.tree.nodes import Node, Tree, build_tree, family_name, shaped
from isogloss.tree.shapes import families_of_file, learned_families, random_families
from isogloss.tree.virtual import TreeEmbedding, TreePrefix
from isogloss.tune import difficulty, english_rows, longest_row, tune, within

Progress = Callable[[int, int], None]
SILENCE = 5.0
"""Seconds after which a user is told what is being waited for."""


class Watcher:
    """Hears what a run is doing; the command line shows it, a program may ignore it."""

    def say(self, text: str) -> None:
        """One line about the method."""

    def say_once(self, text: str) -> None:
        """As `say`, unless it was said before: both stages read the same file."""
        said = self.__dict__.setdefault("_said", set())
        if text not in said:
            said.add(text)
            self.say(text)

    @contextmanager
    def bar(self, what: str) -> Iterator[Progress]:
        """Progress on something that takes long."""
        yield lambda done, of: None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Something that cannot tell how far it is; said if it takes longer than `SILENCE`."""
        timer = threading.Timer(SILENCE, self.say, (f"{what} …",))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass(frozen=True)
class Run:
    """A run's settings, folder and what lies in it."""

    config: Config
    watcher: Watcher

    @property
    def folder(self) -> Path:
        return self.config.run

    @property
    def tuned(self) -> Path:
        return self.folder / "tuned"

    @property
    def carriers(self) -> Path:
        return self.folder / "adapters" / "tree.safetensors"

    @property
    def signals(self) -> Path:
        """The cache of the teacher's signals."""
        return self.config.distill.cache or self.folder / "cache"

    @property
    def curve(self) -> Path:
        return self.folder / "curves.jsonl"

    @cached_property
    def dtype(self) -> torch.dtype:
        return pick_dtype(self.config.dtype)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self.tuned)) if self.tuned.exists() else self.base_tokenizer

    @cached_property
    def base_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, with the chat template that the settings want."""
        return load_tokenizer(self.config.model, self.config.chat_template)

    @cached_property
    def data_root(self) -> Path | None:
        root = self.config.data_root or root_of_environment()
        if root is not None and not root.is_dir():
            raise DataError(f"data root {root} does not exist; set data_root, --data-root or ISOGLOSS_DATA")
        return root

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.json")

    @property
    def learned(self) -> Path:
        return self.folder / "families.yaml"

    @property
    def families(self) -> dict[str, str]:
        """By language, its family in the carriers that are there; nothing before stage 2."""
        if not self.carriers.exists():
            return {}
        try:
            with safe_open(self.carriers, "pt") as file:
                return json.loads((file.metadata() or {}).get("families", "{}"))
        except SafetensorError as error:
            raise RunError(
                f"{self.carriers} is damaged ({error}); remove it and run `isogloss distill` again"
            ) from None

    @cached_property
    def answering(self) -> dict[str, str]:
        """What the reference model's answers depend on besides what it is asked, as hashes of its files.

        Raises:
            RunError: Stage 1 has not been run.
        """
        self._need_tuned()
        dtype, files = str(self.dtype).removeprefix("torch."), set(self.tuned.iterdir())
        model = {file for file in files if ".safetensors" in file.name or file.name.endswith("config.json")}
        model -= {file for file in model if file.name.startswith("tokenizer")}
        return {
            "model": content_hash(model),
            "template": content_hash(file for file in files - model if file.is_file()),
            "dtype": f"nf4 in {dtype}" if self.config.four_bit else dtype,
        }

    def _need_tuned(self) -> None:
        if not self.tuned.exists():
            raise RunError(f"{self.folder} has no tuned model; run `isogloss tune` first")

    @property
    def tree(self) -> Tree:
        """The tree that the carriers were trained on, else the one that the settings ask for.

        Learned families are Glottolog's until `run_distill` has learned them.
        """
        return self.tree_of(self.families) if self.families else self._planned_tree()

    def tree_of(self, families: Mapping[str, str]) -> Tree:
        """A tree of these languages with the settings' ranks."""
        shape = self.config.languages.tree
        ranks = self.config.distill.carrier.levels
        return build_tree(
            list(families), families=families, ranks=shaped(shape, ranks) if isinstance(shape, str) else ranks
        )

    def _planned_tree(self) -> Tree:
        shape, codes = self.config.languages.tree, self.taught
        if shape == "random":
            return self.tree_of(random_families(codes, self.config.seed))
        if shape == "learned" and self.learned.exists():
            return self.tree_of(families_of_file(self.learned, codes))
        if isinstance(shape, Path):
            return self.tree_of(families_of_file(shape, codes))
        return self.tree_of({code: family_name(code) for code in codes})

    @cached_property
    def english(self) -> list[ParallelExample]:
        """What stage 1 may read."""
        return english_examples(self.config, self.data_root, self.watcher.say_once)

    @cached_property
    def examples(self) -> list[ParallelExample]:
        targets = self.config.languages.targets
        return parallel_examples(self.config, self.data_root, targets, self.watcher.say_once)

    def pairs(self, codes: Sequence[str], use: str) -> dict[str, list[Pair]]:
        """By language, pairs of sentences without any task, as often as they are read for a use."""
        sources = [source for source in self.config.parallel_text if use in source.use]
        return pairs_for(sources, self.data_root, codes, self.config.seed)

    @property
    def taught(self) -> tuple[str, ...]:
        """The languages that have carriers; before stage 2 the targets, all of which must have data."""
        return tuple(self.families) or self._targets

    @cached_property
    def _targets(self) -> tuple[str, ...]:
        refuse_unusable(self.config, self.examples, self.config.languages.targets)
        return self.config.languages.targets

    @property
    def measured(self) -> tuple[str, ...]:
        """The taught languages and those that are only measured."""
        return tuple(dict.fromkeys(self.taught + self.config.evaluate.also))

    def reference_model(self, *, learning: bool = False) -> PreTrainedModel:
        """M: frozen, in evaluation mode.

        Args:
            learning: Adapters will be trained on it, by all processes together.

        Raises:
            RunError: Stage 1 has not been run.
        """
        self._need_tuned()
        with self.watcher.waiting(f"Loading {self.tuned}"):
            model = load_model(
                str(self.tuned),
                self.dtype,
                four_bit=self.config.four_bit,
                shard=learning and self.config.shard,
            )
        return model.requires_grad_(False)

    def student(self, model: PreTrainedModel, *, trained: bool, tree: Tree | None = None) -> Carrier:
        """M with the carriers of the run's tree, or of another."""
        settings, tree = self.config.distill.carrier, tree or self.tree
        torch.manual_seed(self.config.seed)
        if settings.type == "lora":
            carrier: Carrier = TreeLora(model, tree, **lora_shape(model, settings))
        else:
            carrier = (TreePrefix if settings.type == "prefix" else TreeEmbedding)(model, tree)
        if trained:
            if not self.carriers.exists():
                raise RunError(f"{self.folder} has no carriers; run `isogloss distill` first")
            carrier.load_state(load_file(self.carriers))
        return carrier

    def start(self, carrier: Carrier, nodes: Iterable[Node] | None = None) -> None:
        """The first rows of a carrier's nodes, or of some, as the settings want them."""
        settings, texts = self.config.distill.carrier, node_texts(self.config)
        if settings.type != "lora":
            ids = {
                node.name: self.tokenizer(texts.of(node) or "", add_special_tokens=False)["input_ids"]
                for node in carrier.tree.nodes
            }
            carrier.start(settings.init, ids, nodes)


def refuse_unusable(
    config: Config,
    examples: Sequence[ParallelExample],
    codes: Sequence[str],
    way: str = "add items or take {them} out of languages.targets",
) -> None:
    """Refuse languages that have no example at all, or none that can be learned.

    Raises:
        DataError: There is one.
    """
    have = {code for example in examples for code in example.turns}
    if missing := [code for code in codes if code not in have]:
        them = "it" if len(missing) == 1 else "them"
        raise DataError(f"the data has no {', '.join(missing)}; {way.format(them=them)}")
    found = left_out(examples, codes, lambda e, code: lacking(e, code, config.distill.responses))
    for code, reasons in found.items():
        if reasons.total() == sum(code in example.turns for example in examples):
            raise DataError(nothing_in(code, found))


P = ParamSpec("P")
T = TypeVar("T")


def writing(stage: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """A function that writes to a run's folder, and meanwhile keeps other programs from doing so."""

    @wraps(stage)
    def alone(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        with locked(run.folder) if processes.is_main() else nullcontext():
            return stage(run, *args, **kwargs)

    return alone


def open_run(config: Config, watcher: Watcher | None = None) -> Run:
    """Make the run's folder, or check that it belongs to these settings.

    How it is evaluated may change, and where the data and the folder itself lie.

    Raises:
        RunError: The folder was made with other settings, or another process writes to it.
    """
    run = Run(config, watcher or Watcher())
    _keep_settings(run)
    return run


@writing
def _keep_settings(run: Run) -> None:
    config, file, text = run.config, run.folder / "config.yaml", dump_config(run.config)
    if file.exists():
        free = {"evaluate": config.evaluate, "data_root": config.data_root, "run": config.run}
        free["report_to"] = config.report_to
        before = load_config(run.folder).model_copy(update=free)
        if (theirs := dump_config(before)) != text:
            raise RunError(
                f"{config.run} was made with other settings ({_difference(theirs, text)}); "
                "use another run folder or these settings"
            )
    if processes.is_main():
        write_text(file, text)
        _point_to_base(run)


def load_run(folder: Path, watcher: Watcher | None = None) -> Run:
    """An existing run.

    Raises:
        RunError: No run lies there.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder; it has no config.yaml")
    bundle.restore(folder, (watcher or Watcher()).say)
    run = Run(load_config(folder), watcher or Watcher())
    if processes.is_main():
        with suppress(OSError):  # a run that one may only read
            _point_to_base(run)
    return run


def _point_to_base(run: Run) -> None:
    """Write into the adapters where their base lies now: the run may have been moved or copied.

    PEFT takes a relative path from the working directory, so only an absolute one is found from anywhere.
    """
    base = str(run.tuned.resolve())
    there = [*run.folder.glob("adapters/*/adapter_config.json")]
    there += run.folder.glob("exports/*/*/adapter_config.json")
    for file in there:
        remedy = f"remove {file.parent} and write it anew with `isogloss export`"
        config = read_json(file, "base_model_name_or_path", remedy)
        if config["base_model_name_or_path"] != base:
            write_text(file, json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True))


@writing
def run_all(run: Run) -> bool:
    """Every stage that is not there yet; whether anything was left to do."""
    if (run.folder / "report.html").exists() and not _unscored(run, _scores(run)):
        return False
    if not run.tuned.exists() and (found := leaks(run)):
        items = {(leak.suite, leak.id) for leak in found}
        run.watcher.say(
            f"Warning: {len(items)} test items are in the training data; `isogloss check-leaks` lists them"
        )
    run_tune(run)
    run_distill(run)
    if processes.is_main():  # the others have no part in the rest
        run_evaluate(run)
        run_report(run)
    return True


def leaks(run: Run) -> list[Leak]:
    """Test items of the settings' suites that stand in the training data of either stage, in any language."""
    settings, tests = run.config.evaluate, []
    with run.watcher.waiting("Reading the suites"):
        for name in settings.suites:
            tests += texts_of(load_suite(name, run.data_root, settings, run.measured))
    examples = {example.id: example for example in run.english}
    # What is aligned as a bare sentence is what would be translated.
    targets = run.config.languages.targets
    pairs = [p for use in ("translation", "alignment") for p in translation_examples(run.pairs(targets, use))]
    training = [*examples.values(), *run.examples, *pairs]

    def texts(progress: Progress) -> Iterator[Text]:
        for number, example in enumerate(training, start=1):
            yield from trained_texts([example])
            progress(number, len(training))

    with run.watcher.bar("Leak check") as progress:
        return find_leaks(tests, texts(progress))


def select_english(run: Run, stage: Stage | None = None) -> selection.Selection:
    """The English examples that are good enough to learn from, and why the others are not.

    Args:
        stage: Gets what it costs to find out.
    """
    examples = run.english
    settings = run.config.tune.selection
    chosen = selection.Selection(tuple(examples), ())
    with run.watcher.waiting("Selecting English items"):
        if settings.enabled:
            chosen = selection.select(examples, max_chars=settings.max_chars)
        short = within(chosen.kept, run.base_tokenizer, longest_row(run.config))
    chosen = selection.Selection(short.kept, chosen.dropped + short.dropped)
    if not chosen.kept:
        raise DataError(
            f"none of {len(examples)} English examples is left to tune on: "
            + ", ".join(f"{rule} {count}" for rule, count in selection.summary(chosen).items())
        )
    if settings.keep < 1:
        base = _base(run, run.dtype)
        with run.watcher.bar("Difficulty") as progress, spending(stage or Stage(""), base):
            scores = difficulty(base, run.base_tokenizer, chosen.kept, progress)
        best = selection.keep_best(chosen.kept, scores, settings.keep)
        chosen = selection.Selection(best.kept, chosen.dropped + best.dropped)
    return chosen


def _base(run: Run, dtype: torch.dtype) -> PreTrainedModel:
    with run.watcher.waiting(f"Loading {run.config.model}"):
        return load_model(run.config.model, dtype, shard=run.config.shard)


@writing
def run_tune(run: Run) -> None:
    """Stage 1: the reference model, in `tuned/`."""
    if run.tuned.exists():
        return
    check_installed(run.config.report_to)
    stage, settings = run.ledger.begin("tune"), run.config.tune
    if processes.is_main() and (divided := divisions(run.config, run.data_root)):
        write_json(run.folder / "division.json", {one.name: one.plain() for one in divided})
    selecting = Stage("")  # done again where training is killed, so counted when it has ended
    chosen = select_english(run, selecting)
    if processes.is_main():
        selection.write(chosen, run.folder / "selection.jsonl")
    tokenizer = run.base_tokenizer
    if name := template_name(tokenizer):
        run.watcher.say(
            f"Chat template: {name}" + ("" if run.config.chat_template else ", as the base has none")
        )
    # Small steps are lost in weights of bfloat16; frozen ones take none.
    dtype = torch.float32 if settings.method == "full" else run.dtype
    base = _base(run, dtype)
    with run.watcher.waiting("Tokenising the rows"):
        rows = english_rows(
            chosen.kept, unchanging(tokenizer), node_texts(run.config), settings.privileged, run.config.seed,
            longest_row(run.config),
        )  # fmt: skip
    why = ", ".join(f"{count} {rule}" for rule, count in selection.summary(chosen).items())
    run.watcher.say(
        f"Stage 1: {len(chosen.kept)} English instructions tune the base ({len(chosen.dropped)} left out"
        + (f": {why})" if why else ")")
    )
    with tracking(run.folder, run.config.report_to), run.watcher.bar("English tuning") as progress:
        counts = tune(
            base, tokenizer, rows, settings, run.tuned, name=run.config.model,
            curve=run.curve, seed=run.config.seed, dtype=run.dtype, progress=_pausing(run, stage, progress),
            compile=run.config.compile, report_to=run.config.report_to, say=run.watcher.say,
        )  # fmt: skip
    stage.take(selecting)
    stage.tokens_forwarded += int(counts["tokens"])
    stage.tokens_backpropagated += int(counts["tokens"])
    stage.flops += counts["flops"]
    run.ledger.pause(stage)


@writing
def run_distill(run: Run) -> None:
    """Stage 2: the carriers, in `adapters/`; the reference model is unchanged to the bit."""
    if run.carriers.exists():
        return
    check_installed(run.config.report_to)
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("distill")
    _learn_families(run, model, stage)
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)
    parallel = sum(row.language != SOURCE for row in rows)
    run.watcher.say(
        f"Stage 2: {parallel} rows in {len(run.taught)} languages {into(run.config)} {len(run.tree.nodes)} "
        f"nodes, {_width(run)} a path; {len(rows) - parallel} in English keep the root to it"
    )
    for line in _drawn(run, rows, run.taught):
        run.watcher.say(line)
    carrier = run.student(model, trained=False)
    run.start(carrier)
    train_carrier(run, carrier, rows, run.taught, stage)


def into(config: Config) -> str:
    """What stage 2 has rows do to nodes, in words: without a divergence they have no prompt distilled."""
    if config.distill.prompts_are_read:
        return "are distilled into"
    return "train (distill.kl is 0, so no prompt is distilled)"


def _width(run: Run) -> str:
    """How much a path holds, in words."""
    width = run.tree.path_rank()
    return f"rank {width}" if run.config.distill.carrier.type == "lora" else f"{width} virtual positions"


@writing
def run_cache(run: Run) -> Stage:
    """The teacher's signals of every row, in the cache, so that stage 2 spends nothing on it; the cost."""
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("cache")
    earlier = replace(stage)
    _learn_families(run, model, stage)
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.watcher.bar(what) as progress:
            yield _pausing(run, stage, progress)

    scored = scored_elsewhere(run, rows, stage, bar)
    read_signals(
        model, rows, run.config.distill, pad_id=pad_id(run.tokenizer), cost=stage, bar=bar,
        cache=Cache(run.signals, teacher_of(model, run.tokenizer, fingerprint(model))), scored=scored,
    )  # fmt: skip
    run.ledger.pause(stage)
    return Stage("cache", **{name: getattr(stage, name) - getattr(earlier, name) for name in TEACHER})


def train_carrier(
    run: Run, carrier: Carrier, rows: Sequence[Row], codes: Sequence[str], stage: Stage
) -> None:
    """Distil the rows into the carriers, then write these, and the languages' adapters, to the run."""
    work = run.folder / f"{stage.stage}.work"
    with run.watcher.waiting("Hashing the model's weights"):
        before = fingerprint(carrier.model)

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.watcher.bar(what) as progress:
            yield _pausing(run, stage, progress)
        run.ledger.pause(stage)

    with tracking(run.folder, run.config.report_to):
        distil(
            carrier, rows, run.config.distill, pad_id=pad_id(run.tokenizer), seed=run.config.seed,
            work=work, curve=run.curve, cost=stage, bar=bar, say=run.watcher.say, tokenizer=run.tokenizer,
            cache=Cache(run.signals, teacher_of(carrier.model, run.tokenizer, before)),
            scored=scored_elsewhere(run, rows, stage, bar), compile=run.config.compile,
            report_to=run.config.report_to,
        )  # fmt: skip
    if fingerprint(carrier.model) != before:
        raise RuntimeError("stage 2 changed the reference model's weights")
    if processes.is_main():
        _keep(run, carrier, rows, codes)
        run.ledger.pause(stage)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()


def _keep(run: Run, carrier: Carrier, rows: Sequence[Row], codes: Sequence[str]) -> None:
    """Write trained carriers: each language's adapter, the tree, and last what says that all are there.

    Learned in float32, they are kept in bfloat16, rounded before anything reads them: adapters, exports,
    bundle and scores are of the same numbers.
    """
    state = {name: rows.bfloat16() for name, rows in carrier.state().items()}
    carrier.load_state(state)
    for code in filter(carrier.reads, codes):
        adapter = run.folder / "adapters" / code
        with naming(adapter):
            carrier.export(code, adapter, base_model=str(run.tuned.resolve()))
    write_json(run.folder / "tree.json", _tree_image(run, carrier.tree, rows))
    save_whole(state, run.carriers, {"families": json.dumps(carrier.tree.families)})


@writing
def run_evaluate(run: Run) -> None:
    """Every measure before and after, in `scores.json` and `predictions/`."""
    settings, scores = run.config.evaluate, _scores(run)
    with run.watcher.waiting("Reading the suites"):
        loaded = {name: load_suite(name, run.data_root, settings, run.measured) for name in settings.suites}
    missing = _unscored(run, scores, loaded)
    if not missing:
        return
    for name in [name for name, suite in scores["suites"].items() if not _is_of(run, name, suite)]:
        del scores["suites"][name]
        if name not in missing:
            run.watcher.say(f"{name} was scored with another model or other measures; its scores are dropped")
    model = run.reference_model()
    plain = runner.Model(model, run.tokenizer)
    stage = run.ledger.begin("evaluate")
    # Counted when its scores are written: what a kill loses is done again.
    costs, found = {name: Stage("evaluate") for name in missing}, {}
    for name in missing:
        with spending(costs[name], model):
            found[name] = _before(run, plain, loaded[name])
    carrier = run.student(model, trained=True)
    aligned = runner.Model(model, run.tokenizer, carrier)
    for name in missing:
        with spending(costs[name], carrier.model, carrier.met):
            scores["suites"][name] = _after(run, aligned, plain, loaded[name], found[name])
        scores["summary"] = _summary(run, scores)
        write_json(run.folder / "scores.json", scores)
        stage.take(costs[name])
        run.ledger.pause(stage)


def teacher_gains(run: Run, suites: Sequence[str], items: int) -> list[Gain]:
    """What each way of prompting adds in context, on the dev items of some suites; see `teacher.gain`.

    Args:
        items: Of each suite, at most.

    Raises:
        RunError: Stage 1 has not been run.
        DataError: No suite has items that can be asked in English.
    """
    held_out = run.config.evaluate.model_copy(update={"split": "dev"})
    asked = [
        item
        for name in suites
        for item in load_suite(name, run.data_root, held_out, run.taught, items).items
        if SOURCE in item.turns and "consistency" in item.measures
    ]
    if not asked:
        raise DataError(f"{', '.join(suites)}: no item can be compared with an English answer; name others")
    model = run.reference_model()
    with run.watcher.bar("Gain in context") as progress:
        return gains(
            model, run.tokenizer, asked, run.taught, node_texts(run.config), run.tree,
            batch=held_out.batch, max_new_tokens=held_out.max_new_tokens, seed=run.config.seed,
            progress=progress,
        )  # fmt: skip


@writing
def run_transfer(run: Run, languages: Sequence[str], suites: Sequence[str]) -> list[transfer.Reading]:
    """Untaught languages through every node of the tree, in `transfer.json`; see `evaluate.transfer`.

    Raises:
        RunError: Stage 2 has not been run, or the tree has no family that could be read through.
        ConfigError: A language was taught.
        DataError: No suite has one of the languages.
    """
    if taught := [code for code in languages if code in run.taught]:
        raise ConfigError(f"{', '.join(taught)} was taught; name languages that the run has not seen")
    model = run.reference_model()
    carrier = run.student(model, trained=True)
    if not any(node.level == "family" and node.rank for node in carrier.tree.nodes):
        raise RunError(
            f"{run.folder}: no family of its tree has rows (languages.tree {run.config.languages.tree})"
        )
    plain, found = runner.Model(model, run.tokenizer), []
    for name in suites:
        suite = load_suite(name, run.data_root, run.config.evaluate, languages)
        with run.watcher.bar(f"{name}: languages that were not taught") as progress:
            found += transfer.readings(
                plain, carrier, suite, languages, run.config.evaluate, run.config.seed, progress
            )
    if not found:
        raise DataError(f"{', '.join(suites)} has none of {', '.join(languages)}")
    made = [asdict(one) for one in transfer.transfers(found, run.config.seed)]
    write_json(run.folder / "transfer.json", {"transfers": made, "readings": [asdict(one) for one in found]})
    return found


@writing
def run_report(run: Run) -> Path:
    """The page, in `report.html`."""
    return write_report(run.folder)


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every weight that belongs to the reference model; of parts, for all processes together."""
    digest = hashlib.sha256()
    for name, p in sorted(causal_of(model).named_parameters()):
        if "lora_" not in name:
            weight = p.detach()
            if isinstance(weight, DTensor):
                weight = weight.full_tensor()
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_whole(state: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write tensors, and texts about them, whole or not at all."""
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft, about)


@dataclass
class _Before:
    """What the reference model gives a suite: its side, and what the other side is compared with."""

    side: runner.Side
    english: runner.Given
    mastery: dict[str, tasks.Mastery]
    retriever: runner.Retriever | None
    official: dict[str, Any]
    family: dict[str, Any]


def _before(run: Run, plain: runner.Model, suite: SuiteData) -> _Before:
    settings = run.config.evaluate
    english, rephrased = runner.Given([], []), {}
    if suite.items:
        with run.watcher.bar(f"{suite.name}: English") as progress:
            english = runner.english_answers(plain, suite, settings, progress)
            rephrased = runner.rephrased_answers(plain, suite, english.texts, settings, progress)
    mastery = runner.mastery_by_task(suite, english.texts, rephrased)
    mastered = [task for task, one in mastery.items() if one.mastered]
    side, retriever = _side(run, plain, plain, suite, english.texts, mastered, "before")
    side.by_task["accuracy"] = _with_english(suite, side, english)
    _write_side(run, suite, "before", side)
    official = _official(run, suite, "before", english.texts, side)
    family = runner.family(suite, english.texts, english.rankings, side, run.config.seed)
    return _Before(side, english, mastery, retriever, official, family)


def _after(run: Run, aligned: runner.Model, plain: runner.Model, suite: SuiteData, before: _Before) -> dict:
    settings, languages = run.config.evaluate, _in_suite(suite, run.measured)
    mastered = [task for task, one in before.mastery.items() if one.mastered]
    side, retriever = _side(run, aligned, plain, suite, before.english.texts, mastered, "after")
    after, given = dict(side.scores), runner.Given([], [])
    if suite.items:
        with run.watcher.bar(f"{suite.name}: English after") as progress:
            given = runner.english_answers(aligned, suite, settings, progress)
    right = runner.english_right(suite, before.english.texts)
    if right:
        after["retention"] = runner.retention(
            right, runner.english_right(suite, given.texts), run.config.seed
        )
    side.by_task["accuracy"] = _with_english(suite, side, given)
    _write_side(run, suite, "after", side)
    more = {"before": before.official, "after": _official(run, suite, "after", given.texts, side)}
    family = runner.family(suite, given.texts, given.rankings, side, run.config.seed)
    accuracy = {"accuracy": sum(right) / len(right)} if right else {}
    return {
        "signature": _signature(run, suite, before.retriever, retriever),
        "settings": _how(run, suite.name),
        "languages": list(languages),
        "before": before.side.scores,
        "after": after,
        "spread": {"before": runner.spreads(before.side.scores), "after": runner.spreads(after)},
        "tasks": {"before": before.side.tasks, "after": side.tasks},
        "kappa": {"before": before.side.kappa, "after": side.kappa},
        "english": accuracy | {"tasks": {task: one.plain() for task, one in before.mastery.items()}},
        "layer": {"before": _layers(before.retriever), "after": _layers(retriever)},
        "notes": [*_notes(suite, run, languages), *suite.notes],
        "family": {"before": before.family, "after": family},
        "unreadable": {"before": before.side.unreadable, "after": side.unreadable},
        "cut": {
            phase: runner.cut_shares([SOURCE] * len(own.cut), own.cut) | one.cut
            for phase, own, one in (("before", before.english, before.side), ("after", given, side))
        },
        **({"official": more} if suite.score else {}),
    }


def _side(
    run: Run,
    subject: runner.Model,
    plain: runner.Model,
    suite: SuiteData,
    english: Sequence[str],
    mastered: Sequence[str],
    phase: str,
) -> tuple[runner.Side, runner.Retriever | None]:
    """One side's scores, means over its tasks among them, and how its sentences were compared."""
    settings, seed, retriever = run.config.evaluate, run.config.seed, None
    if suite.sentences:
        with run.watcher.bar(f"{suite.name}: layer {phase}") as progress:
            retriever = runner.retriever(subject, plain, suite, settings, progress)
    with run.watcher.bar(f"{suite.name}: {phase}") as progress:
        side = runner.evaluate_side(
            subject, suite, _in_suite(suite, run.measured), english, retriever, settings, seed,
            progress,
        )  # fmt: skip
    side.scores |= tasks.suite_means(
        side.by_task["consistency"], _by_place(side.hits.get("retrieval", {})), mastered, seed=seed
    )
    return side, retriever


def _with_english(
    suite: SuiteData, side: runner.Side, english: runner.Given
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by task, language and item, English among the languages."""
    found = {task: dict(by_language) for task, by_language in side.by_task["accuracy"].items()}
    for task, hits in runner.english_hits(suite, english.texts).items():
        found.setdefault(task, {})[SOURCE] = {id: float(hit) for id, hit in hits.items()}
    return found


def _by_place(hits: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Sentences are the same in every language by their place."""
    return {code: {str(n): float(hit) for n, hit in enumerate(row)} for code, row in hits.items()}


def _layers(retriever: runner.Retriever | None) -> dict[str, Any]:
    if retriever is None:
        return {}
    return {
        "retrieval": retriever.layer,
        "retrieval_raw": retriever.raw_layer,
        "kind": retriever.kind,
        "statistics": retriever.sentences if retriever.statistics else 0,
    }


def _summary(run: Run, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The run's numbers over all suites, from the hits that lie beside the answers."""

    def read(phase: str) -> dict[str, tasks.SuiteHits]:
        found = {}
        for name in scores["suites"]:
            file = run.folder / "predictions" / f"{name}.{phase}.hits.json"
            kept = read_json(file, "hits", "remove scores.json and run `isogloss evaluate` again")
            sentences = [_by_place(kept["hits"].get(m, {})) for m in ("retrieval", "retrieval_raw")]
            found[name] = tasks.SuiteHits(kept.get("tasks", {}), *sentences)
        return found

    mastered = {
        f"{name}/{task}"
        for name, suite in scores["suites"].items()
        for task, one in suite["english"].get("tasks", {}).items()
        if one["mastered"]
    }
    learned = run.config.languages
    # As little data as a low-resource language has, or one: where all have as much, its class alone says so.
    low = [
        code
        for code in run.measured
        if languages()[code].resource == "low" or learned.amounts.get(code, math.inf) <= learned.items.low
    ]
    return tasks.summary(read("before"), read("after"), mastered, low=low, seed=run.config.seed)


def _official(
    run: Run, suite: SuiteData, phase: str, english: Sequence[str], side: runner.Side
) -> dict[str, Any]:
    """The benchmark's own metrics; its prediction files are written beside the answers."""
    if suite.score is None:
        return {}
    answered: dict[str, dict[str, str]] = {
        SOURCE: {item.id: text for item, text in zip(runner.twinned(suite), english, strict=True)}
    }
    for row in side.predictions:
        answered.setdefault(row["language"], {})[row["id"]] = row["answer"]
    found = suite.score(answered)
    folder = run.folder / "predictions" / f"{suite.name}.{phase}"
    for name, text in found.files.items():
        write_text(folder / name, text)
    return found.plain()


def _write_side(run: Run, suite: SuiteData, phase: str, side: runner.Side) -> None:
    stem = run.folder / "predictions" / f"{suite.name}.{phase}"
    write_lines(stem.with_name(stem.name + ".jsonl"), side.predictions)
    hits = {
        # Retrieval in one direction of two is half a hit; null where a measure says nothing of an answer.
        name: {code: [int(h) if isinstance(h, bool) else h for h in row] for code, row in hits.items()}
        for name, hits in side.hits.items()
    }
    ids = [item.id for item in suite.items]
    found = {"items": ids, "data": data_hashes(suite), "hits": hits, "tasks": side.by_task}
    write_json(stem.with_name(stem.name + ".hits.json"), found)


def _in_suite(suite: SuiteData, languages: Sequence[str]) -> tuple[str, ...]:
    have = {code for item in suite.items for code in item.turns} | set(suite.sentences)
    return tuple(code for code in languages if code in have)


def _notes(suite: SuiteData, run: Run, languages: Sequence[str]) -> list[str]:
    missing = [code for code in run.measured if code not in languages]
    notes = [
        f"{code} was not taught; it is read through {run.tree.path(code)[-1].name}."
        for code in languages
        if code not in run.taught
    ]
    if missing:
        notes.append(f"{suite.name} has no {', '.join(missing)}: left out of every mean of this suite.")
    return notes


def _signature(
    run: Run, suite: SuiteData, before: runner.Retriever | None, after: runner.Retriever | None
) -> str:
    return signature(
        {
            "suite": suite.name, "rev": suite.revision, "split": suite.split, "items": len(suite.items),
            "sentences": len(suite.sentences.get(SOURCE, ())), **_measuring(run, suite.name),
            "data": data_hashes(suite)[SOURCE],
            "layer_from": "settings" if run.config.evaluate.layer else "sentences",
            **_how_retrieved(before, after),
            "seed": run.config.seed, "isogloss": version("isogloss"),
        }
    )  # fmt: skip


def _measuring(run: Run, suite: str) -> dict[str, str]:
    """Who is measured, and how: what is known of a suite's signature before its data are read."""
    scoring = "likelihood" if suite in run.config.evaluate.likelihood else "generation"
    who = run.answering if run.tuned.exists() else {}  # both may have been removed to make room
    adapters = {"adapters": content_hash([run.carriers])} if run.carriers.exists() else {}
    settings = settings_fields(_how(run, suite))
    return {"scoring": scoring, **settings, **who, **adapters, "ruler": str(RULER)}


def _is_of(run: Run, name: str, suite: Mapping[str, Any]) -> bool:
    """Whether a suite's scores are of the run's model and adapters as they are now, by today's measures."""
    signed, now = fields_of(suite["signature"]), _measuring(run, name)
    who = ("model", "template", "dtype", "adapters", "ruler")
    return all(signed.get(field) == now.get(field) for field in who)


def _how_retrieved(before: runner.Retriever | None, after: runner.Retriever | None) -> dict[str, Any]:
    """How sentences were compared, at which layer before and after, and what the statistics are of."""
    if before is None or after is None:
        return {}
    found: dict[str, Any] = {"retrieval": before.kind, "layer": f"{before.layer}/{after.layer}"}
    if before.statistics is not None:
        found["statistics"] = f"own-{before.sentences}"  # of each side's own states of so many sentences
    return found | {"raw_layer": f"{before.raw_layer}/{after.raw_layer}"}


def _english_answers(
    run: Run, model: PreTrainedModel, examples: Sequence[ParallelExample], stage: Stage
) -> dict[str, str]:
    """What the teacher reads as the English answer: the data's, or M's own where the data has none.

    With `responses: teacher` it is M's own, unless that has no end; an example without any is not there.
    """
    longest = run.config.distill.sample_tokens
    kept = _kept_answers(run)
    asked = [e for e in examples if _asks(run, e) and kept.of(*_asked(e)) is None]
    if asked:
        with run.watcher.bar("English answers") as progress:
            for begin in range(0, len(asked), TOGETHER):
                some = asked[begin : begin + TOGETHER]
                prompts = [encode_prompt(run.tokenizer, e.turns[SOURCE].instruction) for e in some]
                with spending(stage, model):
                    texts = dict(ended(model, run.tokenizer, prompts, max_new_tokens=longest))
                # Of parts of a model all processes make the same answers.
                kept.keep({_asked(e): texts[n] for n, e in enumerate(some)}, write=processes.is_main())
                progress(begin + len(some), len(asked))
    return {e.id: answer for e in examples if (answer := _english_answer(run, e, kept)) is not None}


def _kept_answers(run: Run) -> Answers:
    """M's English answers: none that another model, template or limit gave."""
    limit = run.config.distill.sample_tokens
    return Answers(run.folder / "english_answers.jsonl", {**run.answering, "limit": limit})


def _asks(run: Run, example: ParallelExample) -> bool:
    """Whether M answers an example in English."""
    if example.own_response:
        return False
    return run.config.distill.responses == "teacher" or example.turns[SOURCE].response is None


def _asked(example: ParallelExample) -> tuple[str, str]:
    return example.id, example.turns[SOURCE].instruction


def _english_answer(run: Run, example: ParallelExample, kept: Answers) -> str | None:
    """M's answer where it is asked for and has an end, else the data's; None where both are empty."""
    given = (_asks(run, example) and kept.of(*_asked(example))) or example.turns[SOURCE].response
    return given if given and given.strip() else None


def row_of(run: Run, code: str, id: str) -> tuple[Row, PreTrainedTokenizerBase | None]:
    """What student and teacher read of one example, in one language that is taught.

    Also the teacher's tokenizer, where it is another.

    Raises:
        RunError: There is no such example or language, or nobody has answered it yet.
    """
    if code not in run.taught:
        raise RunError(f"{code} is not taught in {run.folder}; there are {', '.join(run.taught)}")
    examples = {e.id: e for e in run.examples if code in e.turns}
    if id not in examples:
        raise RunError(f"--id {id}: no example in {code} has this id; {nearest(id, examples)}")
    example, kept = examples[id], _kept_answers(run)
    answer = _english_answer(run, example, kept)
    if answer is None or (_asks(run, example) and kept.of(*_asked(example)) is None):
        raise RunError(f"{id} has no English answer yet; run `isogloss cache` or `isogloss distill` first")
    given: tuple = run.tokenizer, [example], {id: answer}, run.tree, [code]
    teacher = run.config.distill.teacher
    (row,) = _rows(run, *given, retain=False)
    if not (isinstance(teacher, ModelTeacher) and teacher.level == "sequence"):
        return row, joining.tokenizer_of(teacher)
    its = load_tokenizer(teacher.path)
    theirs = _rows(run, *given, retain=False, teacher=its)
    answers = joining.answers_of(teacher, run.tokenizer, run.dtype, run.folder / "teacher_answers.jsonl")
    (answered,) = joining.answered_rows([row], theirs, answers)
    if answered is row:
        raise RunError(f"{id} has no answer of {teacher.path} yet; run `isogloss distill` first")
    return replace(answered, teacher_prompt=theirs[0].teacher_prompt), its


def _needed(
    examples: Sequence[ParallelExample],
    amounts: Mapping[str, int],
    weights: Sequence[float] = (1.0,),
    responses: str = "reference",
    *,
    same: bool = True,
) -> list[ParallelExample]:
    """The examples that some language learns from, as far as that is known before M answers."""
    chosen = choose(examples, amounts, weights, lambda e, code: lacking(e, code, responses), same=same)
    return [examples[place] for place in sorted({place for places in chosen.values() for place in places})]


def rows_for(
    run: Run,
    model: PreTrainedModel,
    examples: Sequence[ParallelExample],
    tree: Tree,
    codes: Sequence[str],
    stage: Stage,
    *,
    retain: bool = True,
) -> list[Row]:
    """What stage 2 reads for these languages; M answers in English where the data does not.

    An example whose English answer has no end, or names no option of a closed task, is left out, and the next
    one that is drawn takes its place.

    Args:
        retain: Also English of stage 1, for the root.
    """
    english: dict[str, str] = {}
    without: Counter[str] = Counter()
    useless: set[str] = set()
    asked, responses = 0, run.config.distill.responses
    amounts = {code: run.config.languages.amount(code) for code in codes}
    weights = [source.weight for source in run.config.sources]
    same = run.config.languages.same_items
    while True:
        left = [e for e in examples if e.id not in useless]
        used = _needed(left, amounts, weights, responses, same=same)
        new = [e for e in used if e.id not in english]
        if not new:
            break
        with processes.main_first(together=bool(parts_of(model))):
            english |= _english_answers(run, model, new, stage)
        asked += len(new)
        for example in new:
            if why := _useless(run, example, english.get(example.id)):
                without[why] += 1
                useless.add(example.id)
                english.pop(example.id, None)
    for why, count in without.items():
        run.watcher.say(f"{count} of {asked} examples are left out: {why}")
    for line in told(left_out(examples, codes, lambda e, code: lacking(e, code, responses))):
        run.watcher.say(line)
    pairs, bare = translation_examples(run.pairs(codes, "translation")), run.pairs(codes, "alignment")
    tokenizer = unchanging(run.tokenizer)
    with run.watcher.waiting("Tokenising the rows"):
        rows = _rows(run, tokenizer, left, english, tree, codes, pairs, bare, retain=retain)
    teacher = run.config.distill.teacher
    if isinstance(teacher, ModelTeacher) and teacher.level == "sequence":
        its, file = load_tokenizer(teacher.path), run.folder / "teacher_answers.jsonl"
        theirs = _rows(
            run, run.tokenizer, left, english, tree, codes, pairs, bare, retain=retain, teacher=its
        )
        with processes.main_first():
            rows = joining.with_answers(
                rows, theirs, teacher, run.tokenizer, run.dtype, file, stage, run.watcher.bar
            )
    return rows + _bare_rows(run, tokenizer, bare, rows)


def _bare_rows(
    run: Run, tokenizer: PreTrainedTokenizerBase, pairs: Mapping[str, Sequence[Pair]], rows: Sequence[Row]
) -> list[Row]:
    first = 1 + max((row.meaning for row in rows), default=-1)
    return sentence_rows(pairs, tokenizer, run.config.distill.max_prompt, first)


def _useless(run: Run, example: ParallelExample, answer: str | None) -> str | None:
    """Why M's English answer teaches no language anything; None where it does."""
    if answer is None:
        limit = run.config.distill.sample_tokens
        return f"the model's English answer has no end within {limit} tokens (distill.sample_tokens)"
    if not _asks(run, example) or example.options is None or run.config.distill.responses != "teacher":
        return None
    names = read_answer(example, SOURCE, answer) is not None
    return None if names else "the model's English answer names no option of its task"


def _drawn(run: Run, rows: Sequence[Row], codes: Sequence[str]) -> Iterator[str]:
    """What the languages of each resource class learn from: how many rows, which tasks, how many labels."""
    by_id, labels = {e.id: e for e in run.examples}, labels_of(run.examples)
    every: dict[str, set[str]] = {}
    for example in run.examples:
        every.setdefault(example.task, set()).update({labels.get(example.id, "")} - {""})
    for resource in ("high", "middle", "low"):
        those = [code for code in codes if languages()[code].resource == resource]
        answered = [row for row in rows if not row.bare]
        ids = {
            code: [row.id.rpartition("/")[0] for row in answered if row.language == code] for code in those
        }
        used = [by_id[id] for found in ids.values() for id in found if id in by_id]
        met: dict[str, set[str]] = {}
        for example in used:
            met.setdefault(example.task, set()).update({labels.get(example.id, "")} - {""})
        if those:
            counts = sorted({len(found) for found in ids.values()})
            span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
            tasks = [
                f"{task} ({len(found)} of {len(every[task])} labels)" if every[task] else task
                for task, found in met.items()
            ]
            yield f"{resource} ({', '.join(those)}): {span} rows a language: {', '.join(tasks)}"
    if sentences := Counter(row.language for row in rows if row.bare):
        counted = ", ".join(f"{code} {count:,}" for code, count in sentences.items())
        yield f"Parallel text, for the hidden-state term alone: {sentences.total():,} sentences: {counted}"


def _foreseen(example: ParallelExample) -> str:
    """What stands in for M's English answer until there is one: the data's response, else a wording."""
    if given := (example.turns[SOURCE].response or "").strip():
        return given
    return next(iter((example.options or {}).get(SOURCE, {}).values()), "…")


def foreseen_rows(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """As `rows_for`, before there is a model: the data's English responses stand in for its answers."""
    english = {e.id: _foreseen(e) for e in run.examples}
    pairs = translation_examples(run.pairs(run.taught, "translation"))
    bare = run.pairs(run.taught, "alignment")
    rows = _rows(run, tokenizer, run.examples, english, run.tree, run.taught, pairs, bare)
    return rows + _bare_rows(run, tokenizer, bare, rows)


def _rows(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParallelExample],
    english: Mapping[str, str],
    tree: Tree,
    codes: Sequence[str],
    pairs: Sequence[ParallelExample] = (),
    bare: Mapping[str, Sequence[Pair]] = MappingProxyType({}),
    *,
    retain: bool = True,
    teacher: PreTrainedTokenizerBase | None = None,
) -> list[Row]:
    settings = run.config.distill
    amounts = {code: run.config.languages.amount(code) for code in codes}
    kept = _english_kept(run) if settings.retain and retain else []
    if kept:
        # As many as there are draws, so that none is read twice where there are enough.
        read = sum(amounts.values()) + sum(code in e.turns for e in pairs for code in codes)
        read += sum(map(len, bare.values()))
        draws = read * settings.epochs * settings.retain / (1 - settings.retain)
        kept = random.Random(run.config.seed).sample(kept, min(len(kept), math.ceil(draws - 1e-9)))
        # Stage 1 may have read longer ones.
        kept = [
            e
            for e in kept
            if len(encode_prompt(tokenizer, e.turns[SOURCE].instruction)) <= settings.max_prompt
        ]
        amounts[SOURCE] = len(kept)
    return build_rows(
        [*kept, *examples], amounts, tokenizer, tree, node_texts(run.config),
        english={e.id: e.turns[SOURCE].response or "" for e in [*kept, *pairs]} | dict(english),
        responses=settings.responses, limit=settings.max_prompt, view=settings.teacher_view,
        reads=settings.teacher_reads,
        require_texts=settings.require_texts,
        teacher=teacher or joining.tokenizer_of(settings.teacher),
        weights=[source.weight for source in run.config.sources],
        same=run.config.languages.same_items, extra=pairs,
    )  # fmt: skip


def _learn_families(run: Run, model: PreTrainedModel, stage: Stage, sentences: int = 48) -> None:
    """Group the languages by their instructions' middle states, in as many groups as Glottolog has; if the
    settings want that and it is not done."""
    if run.config.languages.tree != "learned":
        return
    with processes.main_first(together=bool(parts_of(model))):
        if not run.learned.exists():
            families = _learned(run, model, stage, sentences)
            if processes.is_main():
                write_text(run.learned, yaml.safe_dump(families, sort_keys=False))


def _learned(run: Run, model: PreTrainedModel, stage: Stage, sentences: int) -> dict[str, list[str]]:
    shared = [e for e in run.examples if all(code in e.turns for code in run.taught)][:sentences]
    if len(shared) < 8:
        raise DataError(
            f"languages.tree: learned needs 8 examples in all of {', '.join(run.taught)}; the data has "
            f"{len(shared)}; take families"
        )
    layer, subject = max(1, len(layers_of(model)) // 2), runner.Model(model, run.tokenizer)
    with spending(stage, model):
        vectors = {
            code: runner.embed(subject, [e.turns[code].instruction for e in shared], code, [layer], 64)[layer]
            for code in run.taught
        }
    groups: dict[str, list[str]] = {}
    for code, group in learned_families(vectors, len({family_name(code) for code in run.taught})).items():
        groups.setdefault(group, []).append(code)
    return groups


def _english_kept(run: Run) -> list[ParallelExample]:
    """What stage 1 read, English alone."""
    file = run.folder / "selection.jsonl"
    remedy = "restore it, or tune again in another run folder"
    dropped = {e["id"] for e in read_lines(file, remedy) if not e["kept"]} if file.exists() else set()
    return [
        ParallelExample(e.id, e.task, {SOURCE: e.turns[SOURCE]})
        for e in run.english
        if e.id not in dropped and (e.turns[SOURCE].response or "").strip()
    ]


def scored_elsewhere(run: Run, rows: Sequence[Row], stage: Stage, bar: Bar) -> list[Scored] | None:
    """What another teacher than the model itself says of the rows that are not English, if there is one."""
    with processes.main_first():
        return joining.scores_of(
            rows, run.config.distill, run.tokenizer, run.dtype, run.folder / "teacher_scores.jsonl", stage,
            bar, lambda model, its: Cache(run.signals, teacher_of(model, its, fingerprint(model))),
        )  # fmt: skip


def _tree_image(run: Run, tree: Tree, rows: Sequence) -> dict:
    """The nodes with their texts and how many rows each has learnt from, before the tree grew too."""
    texts, file, earlier = node_texts(run.config), run.folder / "tree.json", {}
    if run.carriers.exists() and file.exists():
        remedy = "remove it; how many items the nodes have learned from is then counted anew"
        earlier = {node["name"]: node["items"] for node in read_json(file, "nodes", remedy)["nodes"]}
    return {
        "nodes": [
            {
                "name": node.name, "level": node.level, "parent": node.parent, "rank": node.rank,
                "languages": list(node.languages), "text": texts.of(node) or "",
                "items": earlier.get(node.name, 0) + sum(row.language in node.languages for row in rows),
            }
            for node in tree.nodes
        ]
    }  # fmt: skip


def _pausing(run: Run, stage: Stage, progress: Progress) -> Progress:
    """Progress that also writes the ledger now and then, so that a killed run loses little of its time."""

    def report(done: int, of: int) -> None:
        if done % 50 == 0 or time.monotonic() - stage.started > 10:  # seconds
            run.ledger.pause(stage)
        progress(done, of)

    return report


def _scores(run: Run) -> dict:
    file = run.folder / "scores.json"
    if file.exists():
        return read_json(file, "suites", "remove it and run `isogloss evaluate` again")
    return {"schema": 1, "isogloss": version("isogloss"), "summary": {}, "suites": {}}


def _unscored(run: Run, scores: dict, loaded: Mapping[str, SuiteData] | None = None) -> list[str]:
    """Suites that are asked for and have no scores, or those of another model or measured in another way.

    Args:
        loaded: The suites, if their data are to be compared too.
    """

    def done(name: str) -> bool:
        suite = scores["suites"].get(name)
        if suite is None or suite["settings"] != _how(run, name):
            return False
        signed, now = fields_of(suite["signature"]), _measuring(run, name)
        if loaded is not None:
            now["data"] = data_hashes(loaded[name])[SOURCE]
        return all(signed.get(field) == value for field, value in now.items())

    return [name for name in run.config.evaluate.suites if not done(name)]


def _how(run: Run, suite: str) -> dict:
    others = (SUITES.keys() & Evaluate.model_fields.keys()) - {suite}  # settings of other suites
    how = run.config.evaluate.model_dump(mode="json", exclude={"suites", "also", *others})
    return how | {"languages": list(run.measured)}


def _difference(theirs: str, ours: str) -> str:
    for a, b in zip(theirs.split("\n"), ours.split("\n"), strict=False):
        if a != b:
            return f"{a.strip()} there, {b.strip()} here"
    return "of another version"


def _check_lengths(run: Run, rows: Sequence[Row]) -> None:
    model = skeleton(run.config.model)
    for row in rows:
        for prompt in (row.student.prompt, row.teacher_prompt):
            check_length(model, run.config.model, len(prompt) + len(row.student.response), row.id)


def check(run: Run) -> None:
    """Refuse what cannot work before anything is written.

    Raises:
        DataError: Data, a language or a suite is missing.
        ConfigError: The model or the teacher is not there or broken, the carrier does not fit the model, or
            the machine cannot hold it so.
    """
    learned = run.carriers.exists()
    check_machine(four_bit=run.config.four_bit and not learned, shard=run.config.shard and not learned)
    bases.local(run.config.model, run.watcher.say)  # where it has to be converted, that is told first
    with run.watcher.waiting("Checking the settings, the model and the data"):
        tokenizer = unchanging(run.base_tokenizer)
        check_base(run.config.model, tokenizer, weights=not run.tuned.exists())
        teacher = run.config.distill.teacher
        if isinstance(teacher, ModelTeacher) and not learned:
            check_base(teacher.path, load_tokenizer(teacher.path))
        refuse_misfit(run.config)
        if run.config.compile and not run.carriers.exists():
            check_compiler()
        if not run.tuned.exists():
            _ = run.english  # refuses data that is not there
            _check_lengths(run, foreseen_rows(run, tokenizer))
        check_suites(run)


def check_suites(run: Run) -> None:
    """Refuse an evaluation that cannot be made, and tell where it would cut good answers short.

    Raises:
        DataError: A suite's data are missing, or have none of the languages.
    """
    settings = run.config.evaluate
    for name in settings.suites:
        if not _in_suite(load_suite(name, run.data_root, settings, run.measured, 1, 1), run.measured):
            raise DataError(f"{name} has none of {', '.join(run.measured)}; take it out of evaluate.suites")
    if "parallel" in settings.suites:  # whose answers are as long as the user's own
        _tell_cuts(run, load_suite("parallel", run.data_root, settings, run.measured))


def _tell_cuts(run: Run, suite: SuiteData) -> None:
    """Say how many reference answers are longer than the answers that are compared with them may get."""
    limit = run.config.evaluate.max_new_tokens
    lengths = [
        len(encode_response(run.tokenizer, turn.response))
        for item in suite.items
        if item.options is None
        for turn in item.turns.values()
        if turn.response
    ]
    if over := [length for length in lengths if length > limit]:
        run.watcher.say(
            f"Warning: {len(over)} of {len(lengths)} reference answers of the suite {suite.name} have more "
            f"than {limit} tokens, up to {max(over)}; longer answers are cut: raise evaluate.max_new_tokens"
        )
