"""The whole job: English tuning → distillation into the tree → evaluation → report.

Each stage leaves its result in the run folder, whole, and is skipped when it is already there; so
running again resumes, or says that the run is complete.
"""

import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import processes
from isogloss.config import Config, Evaluate, ModelTeacher, dump_config, load_config
from isogloss.cost import TEACHER, Ledger, Stage, spending
from isogloss.data import selection
from isogloss.data.chat import encode_prompt
from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import nearest
from isogloss.data.sources import english_examples, node_texts, parallel_examples
from isogloss.distill.cache import Cache, teacher_of
from isogloss.distill.rows import Row, build_rows
from isogloss.distill.stage import Bar, distil, read_signals
from isogloss.errors import DataError, RunError
from isogloss.evaluate import runner
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.leaks import Leak, Text, find_leaks, texts_of
from isogloss.evaluate.suites import SUITES, load_suite
from isogloss.files import read_lines, write_json, write_lines, write_text
from isogloss.languages import SOURCE
from isogloss.model import (
    causal_of,
    check_base,
    check_length,
    layers_of,
    load_model,
    load_tokenizer,
    pad_id,
    parts_of,
    pick_dtype,
    skeleton,
)
from isogloss.report.page import write_report
from isogloss.teacher import joining
from isogloss.teacher.answered import TOGETHER, Answers, ended
from isogloss.teacher.scored import Scored
from isogloss.tree.carrier import Carrier
from isogloss.tree.fit import lora_shape, refuse_misfit
from isogloss.tree.lora import TreeLora
from isogloss.tree.nodes import Node, Tree, build_tree, family_name, shaped
from isogloss.tree.shapes import families_of_file, learned_families, random_families
from isogloss.tree.virtual import TreeEmbedding, TreePrefix
from isogloss.tune import difficulty, english_rows, tune

Progress = Callable[[int, int], None]


class Watcher:
    """Hears what a run is doing; the command line shows it, a program may ignore it."""

    def say(self, text: str) -> None:
        """One line about the method."""

    @contextmanager
    def bar(self, what: str) -> Iterator[Progress]:
        """Progress on something that takes long."""
        yield lambda done, of: None


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
        return load_tokenizer(str(self.tuned) if self.tuned.exists() else self.config.model)

    @cached_property
    def data_root(self) -> Path | None:
        given = self.config.data_root or os.environ.get("ISOGLOSS_DATA")
        if given is not None and not Path(given).is_dir():
            raise DataError(f"data root {given} does not exist; set data_root, --data-root or ISOGLOSS_DATA")
        return None if given is None else Path(given)

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
        with safe_open(self.carriers, "pt") as file:
            return json.loads((file.metadata() or {}).get("families", "{}"))

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
        return english_examples(self.config, self.data_root)

    @cached_property
    def examples(self) -> list[ParallelExample]:
        return parallel_examples(self.config, self.data_root, self.config.languages.targets)

    @property
    def taught(self) -> tuple[str, ...]:
        """The languages that have carriers; before stage 2 the targets, all of which must have data."""
        return tuple(self.families) or self._targets

    @cached_property
    def _targets(self) -> tuple[str, ...]:
        have = {code for example in self.examples for code in example.turns}
        missing = [code for code in self.config.languages.targets if code not in have]
        if missing:
            raise DataError(
                f"the data has no {', '.join(missing)}; add items or take "
                f"{'it' if len(missing) == 1 else 'them'} out of languages.targets"
            )
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
        if not self.tuned.exists():
            raise RunError(f"{self.folder} has no tuned model; run `isogloss tune` first")
        model = load_model(
            str(self.tuned), self.dtype, four_bit=self.config.four_bit, shard=learning and self.config.shard
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


def open_run(config: Config, watcher: Watcher | None = None) -> Run:
    """Make the run's folder, or check that it belongs to these settings.

    How it is evaluated may change, and where the data lie.

    Raises:
        RunError: The folder was made with other settings.
    """
    file, text = config.run / "config.yaml", dump_config(config)
    if file.exists():
        free = {"evaluate": config.evaluate, "data_root": config.data_root}
        before = load_config(file).model_copy(update=free)
        if (theirs := dump_config(before)) != text:
            raise RunError(
                f"{config.run} was made with other settings ({_difference(theirs, text)}); "
                "use another run folder or these settings"
            )
    if processes.is_main():
        write_text(file, text)
    return Run(config, watcher or Watcher())


def load_run(folder: Path, watcher: Watcher | None = None) -> Run:
    """An existing run.

    Raises:
        RunError: No run lies there.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder; it has no config.yaml")
    config = load_config(folder / "config.yaml")
    return Run(config.model_copy(update={"run": folder}), watcher or Watcher())


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
    for name in settings.suites:
        tests += texts_of(load_suite(name, run.data_root, settings, run.measured))
    examples = {example.id: example for example in run.english}
    training = [*examples.values(), *run.examples]
    return find_leaks(
        tests,
        (
            Text("", example.id, code, text)
            for example in training
            for code, turn in example.turns.items()
            for text in (turn.instruction, turn.response)
            if text
        ),
    )


def select_english(run: Run, stage: Stage | None = None) -> selection.Selection:
    """The English examples that are good enough to learn from, and why the others are not.

    Args:
        stage: Gets what it costs to find out.
    """
    examples = run.english
    settings = run.config.tune.selection
    chosen = selection.Selection(tuple(examples), ())
    if settings.enabled:
        chosen = selection.select(examples, max_chars=settings.max_chars)
    if settings.keep < 1:
        base = load_model(run.config.model, run.dtype, shard=run.config.shard)
        with run.watcher.bar("Difficulty") as progress, spending(stage or Stage(""), base):
            scores = difficulty(base, load_tokenizer(run.config.model), chosen.kept, progress)
        best = selection.keep_best(chosen.kept, scores, settings.keep)
        chosen = selection.Selection(best.kept, chosen.dropped + best.dropped)
    return chosen


def run_tune(run: Run) -> None:
    """Stage 1: the reference model, in `tuned/`."""
    if run.tuned.exists():
        return
    stage, settings = run.ledger.begin("tune"), run.config.tune
    chosen = select_english(run, stage)
    if processes.is_main():
        selection.write(chosen, run.folder / "selection.jsonl")
    tokenizer = load_tokenizer(run.config.model)
    # Small steps are lost in weights of bfloat16; frozen ones take none.
    dtype = torch.float32 if settings.method == "full" else run.dtype
    base = load_model(run.config.model, dtype, shard=run.config.shard)
    rows = english_rows(chosen.kept, tokenizer, node_texts(run.config), settings.privileged, run.config.seed)
    run.watcher.say(
        f"Stage 1: {len(chosen.kept)} English instructions tune the base ({len(chosen.dropped)} left out)"
    )
    with run.watcher.bar("English tuning") as progress:
        counts = tune(
            base, tokenizer, rows, settings, run.tuned,
            curve=run.curve, seed=run.config.seed, dtype=run.dtype, progress=_pausing(run, stage, progress),
            compile=run.config.compile,
        )  # fmt: skip
    stage.tokens_forwarded += int(counts["tokens"])
    stage.tokens_backpropagated += int(counts["tokens"])
    stage.flops += counts["flops"]
    run.ledger.pause(stage)


def run_distill(run: Run) -> None:
    """Stage 2: the carriers, in `adapters/`; the reference model is unchanged to the bit."""
    if run.carriers.exists():
        return
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("distill")
    _learn_families(run, model, stage)
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)
    parallel = sum(row.language != SOURCE for row in rows)
    run.watcher.say(
        f"Stage 2: {parallel} rows in {len(run.taught)} languages are distilled into {len(run.tree.nodes)} "
        f"nodes, {_width(run)} a path; {len(rows) - parallel} in English keep the root to it"
    )
    carrier = run.student(model, trained=False)
    run.start(carrier)
    train_carrier(run, carrier, rows, run.taught, stage)


def _width(run: Run) -> str:
    """How much a path holds, in words."""
    width = run.tree.path_rank()
    return f"rank {width}" if run.config.distill.carrier.type == "lora" else f"{width} virtual positions"


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
    before, work = fingerprint(carrier.model), run.folder / f"{stage.stage}.work"

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.watcher.bar(what) as progress:
            yield _pausing(run, stage, progress)
        run.ledger.pause(stage)

    distil(
        carrier, rows, run.config.distill, pad_id=pad_id(run.tokenizer), seed=run.config.seed,
        work=work, curve=run.curve, cost=stage, bar=bar, say=run.watcher.say, tokenizer=run.tokenizer,
        cache=Cache(run.signals, teacher_of(carrier.model, run.tokenizer, before)),
        scored=scored_elsewhere(run, rows, stage, bar), compile=run.config.compile,
    )  # fmt: skip
    if fingerprint(carrier.model) != before:
        raise RuntimeError("stage 2 changed the reference model's weights")
    if processes.is_main():
        _keep(run, carrier, rows, codes)
        run.ledger.pause(stage)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()


def _keep(run: Run, carrier: Carrier, rows: Sequence[Row], codes: Sequence[str]) -> None:
    """Write trained carriers: each language's adapter, the tree, and last what says that all are there."""
    for code in filter(carrier.reads, codes):
        carrier.export(code, run.folder / "adapters" / code, base_model="../../tuned")
    write_json(run.folder / "tree.json", _tree_image(run, carrier.tree, rows))
    save_whole(carrier.state(), run.carriers, {"families": json.dumps(carrier.tree.families)})


def run_evaluate(run: Run) -> None:
    """Every measure before and after, in `scores.json` and `predictions/`."""
    settings, scores = run.config.evaluate, _scores(run)
    missing = _unscored(run, scores)
    if not missing:
        return
    model = run.reference_model()
    plain = runner.Model(model, run.tokenizer)
    stage = run.ledger.begin("evaluate")
    loaded = {name: load_suite(name, run.data_root, settings, run.measured) for name in missing}
    with spending(stage, model):
        found = {name: _before(run, plain, suite) for name, suite in loaded.items()}
    carrier = run.student(model, trained=True)
    aligned = runner.Model(model, run.tokenizer, carrier)
    for name, suite in loaded.items():
        with spending(stage, carrier.model, carrier.met):
            scores["suites"][name] = _after(run, aligned, plain, suite, found[name])
        write_json(run.folder / "scores.json", scores)
        run.ledger.pause(stage)
    run.ledger.pause(stage)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, part, about)
    part.replace(path)


@dataclass
class _Before:
    """What the reference model gives a suite: its side, and what the other side is compared with."""

    side: runner.Side
    english: list[str]
    right: list[bool]
    layer: int
    official: dict[str, Any]
    family: dict[str, Any]


def _before(run: Run, plain: runner.Model, suite: SuiteData) -> _Before:
    settings, languages = run.config.evaluate, _in_suite(suite, run.measured)
    rankings: runner.Rankings = {}
    with run.watcher.bar(f"{suite.name}: before") as progress:
        english = runner.english_answers(plain, suite, settings, progress, rankings) if suite.items else []
        layer, vectors = _vectors(plain, plain, suite, settings)
        side = runner.evaluate_side(
            plain, suite, languages, english, vectors, layer, settings, run.config.seed, progress
        )
    right = runner.english_right(suite, english)
    _write_side(run, suite, "before", side)
    official = _official(run, suite, "before", english, side)
    family = runner.family(suite, english, rankings, side, run.config.seed)
    return _Before(side, english, right, layer, official, family)


def _after(run: Run, aligned: runner.Model, plain: runner.Model, suite: SuiteData, before: _Before) -> dict:
    settings, languages = run.config.evaluate, _in_suite(suite, run.measured)
    with run.watcher.bar(f"{suite.name}: after") as progress:
        layer, vectors = _vectors(aligned, plain, suite, settings)
        side = runner.evaluate_side(
            aligned, suite, languages, before.english, vectors, layer, settings, run.config.seed, progress
        )
        after, given, rankings = dict(side.scores), [], {}
        if suite.items:
            given = runner.english_answers(aligned, suite, settings, progress, rankings)
        if before.right:
            right = runner.english_right(suite, given)
            after["retention"] = runner.retention(before.right, right, run.config.seed)
    _write_side(run, suite, "after", side)
    more = {"before": before.official, "after": _official(run, suite, "after", given, side)}
    family = runner.family(suite, given, rankings, side, run.config.seed)
    return {
        "signature": _signature(run, suite, before.layer, layer),
        "settings": _how(run, suite.name),
        "languages": list(languages),
        "before": before.side.scores,
        "after": after,
        "spread": {"before": runner.spreads(before.side.scores), "after": runner.spreads(after)},
        "tasks": {"before": before.side.tasks, "after": side.tasks},
        "english": {"accuracy": sum(before.right) / len(before.right)} if before.right else {},
        "layer": {"before": before.layer, "after": layer},
        "notes": [*_notes(suite, run, languages), *suite.notes],
        "family": {"before": before.family, "after": family},
        "unreadable": {"before": before.side.unreadable, "after": side.unreadable},
        **({"official": more} if suite.score else {}),
    }


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
        # Retrieval in one direction of two is half a hit.
        name: {code: [h if isinstance(h, float) else int(h) for h in row] for code, row in hits.items()}
        for name, hits in side.hits.items()
    }
    ids = [item.id for item in suite.items]
    write_json(stem.with_name(stem.name + ".hits.json"), {"items": ids, "hits": hits})


def _vectors(subject: runner.Model, plain: runner.Model, suite: SuiteData, settings) -> tuple:
    """The layer, chosen on sentences that are not reported, and M's English embeddings there."""
    if not suite.sentences:
        return 0, None
    layer = settings.layer or runner.choose_layer(subject, suite.layer_sentences, settings.batch)
    english = runner.embed(plain, suite.sentences[SOURCE], SOURCE, [layer], settings.batch)[layer]
    return layer, english


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


def _signature(run: Run, suite: SuiteData, before: int, after: int) -> str:
    scoring = "likelihood" if suite.name in run.config.evaluate.likelihood else "generation"
    parts = {
        "suite": suite.name, "rev": suite.revision, "split": suite.split, "items": len(suite.items),
        "sentences": len(suite.sentences.get(SOURCE, ())), "scoring": scoring,
        "layer": f"{before}/{after}",
        "seed": run.config.seed, "model": _short_hash(run.tuned),
        "dtype": str(run.dtype).removeprefix("torch."), "isogloss": version("isogloss"),
    }  # fmt: skip
    return "|".join(f"{name}:{value}" for name, value in parts.items())


def _short_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


def _english_answers(
    run: Run, model: PreTrainedModel, examples: Sequence[ParallelExample], stage: Stage
) -> dict[str, str]:
    """What the teacher reads as the English answer: the data's, or M's own where the data has none.

    With `responses: teacher` it is M's own, unless that has no end; an example without any is left out.
    """
    longest = run.config.distill.sample_tokens
    kept = Answers(run.folder / "english_answers.jsonl")
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
    english = {e.id: answer for e in examples if (answer := _english_answer(run, e, kept))}
    if without := len(examples) - len(english):
        run.watcher.say(
            f"{without} of {len(examples)} examples are left out: the model's English answer has no end "
            f"within {longest} tokens (distill.sample_tokens)"
        )
    return english


def _asks(run: Run, example: ParallelExample) -> bool:
    """Whether M answers an example in English."""
    return run.config.distill.responses == "teacher" or example.turns[SOURCE].response is None


def _asked(example: ParallelExample) -> tuple[str, str]:
    return example.id, example.turns[SOURCE].instruction


def _english_answer(run: Run, example: ParallelExample, kept: Answers) -> str | None:
    """M's answer where it is asked for and has an end, else the data's."""
    return (_asks(run, example) and kept.of(*_asked(example))) or example.turns[SOURCE].response


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
    example, kept = examples[id], Answers(run.folder / "english_answers.jsonl")
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
    (answered,) = joining.answered_rows([row], theirs, Answers(run.folder / "teacher_answers.jsonl"))
    if answered is row:
        raise RunError(f"{id} has no answer of {teacher.path} yet; run `isogloss distill` first")
    return replace(answered, teacher_prompt=theirs[0].teacher_prompt), its


def _needed(examples: Sequence[ParallelExample], amounts: dict[str, int]) -> list[ParallelExample]:
    """The examples that some language still needs, in their order."""
    left, kept = dict(amounts), []
    for example in examples:
        wanted = [code for code in left if left[code] > 0 and code in example.turns]
        if wanted:
            kept.append(example)
            for code in wanted:
                left[code] -= 1
    return kept


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

    Args:
        retain: Also English of stage 1, for the root.
    """
    used = _needed(examples, {code: run.config.languages.amount(code) for code in codes})
    with processes.main_first(together=bool(parts_of(model))):
        english = _english_answers(run, model, used, stage)
    used = [example for example in used if example.id in english]
    rows = _rows(run, run.tokenizer, used, english, tree, codes, retain=retain)
    teacher = run.config.distill.teacher
    if isinstance(teacher, ModelTeacher) and teacher.level == "sequence":
        its, file = load_tokenizer(teacher.path), run.folder / "teacher_answers.jsonl"
        theirs = _rows(run, run.tokenizer, used, english, tree, codes, retain=retain, teacher=its)
        with processes.main_first():
            return joining.with_answers(
                rows, theirs, teacher, run.tokenizer, run.dtype, file, stage, run.watcher.bar
            )
    return rows


def foreseen_rows(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """As `rows_for`, before there is a model: the data's English responses stand in for its answers."""
    english = {e.id: e.turns[SOURCE].response or "" for e in run.examples}
    return _rows(run, tokenizer, run.examples, english, run.tree, run.taught)


def _rows(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParallelExample],
    english: Mapping[str, str],
    tree: Tree,
    codes: Sequence[str],
    *,
    retain: bool = True,
    teacher: PreTrainedTokenizerBase | None = None,
) -> list[Row]:
    settings = run.config.distill
    amounts = {code: run.config.languages.amount(code) for code in codes}
    kept = _english_kept(run) if settings.retain and retain else []
    if kept:
        # As many as there are draws, so that none is read twice where there are enough.
        draws = sum(amounts.values()) * settings.epochs * settings.retain / (1 - settings.retain)
        kept = random.Random(run.config.seed).sample(kept, min(len(kept), math.ceil(draws)))
        amounts[SOURCE] = len(kept)
    return build_rows(
        [*kept, *examples], amounts, tokenizer, tree, node_texts(run.config),
        english={e.id: e.turns[SOURCE].response or "" for e in kept} | dict(english),
        responses=settings.responses, limit=settings.max_prompt, reads=settings.teacher_reads,
        require_texts=settings.require_texts,
        teacher=teacher or joining.tokenizer_of(settings.teacher),
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
    dropped = {e["id"] for e in read_lines(file) if not e["kept"]} if file.exists() else set()
    return [
        ParallelExample(e.id, e.task, {SOURCE: e.turns[SOURCE]}) for e in run.english if e.id not in dropped
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
        earlier = {node["name"]: node["items"] for node in json.loads(file.read_text("utf-8"))["nodes"]}
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
        return json.loads(file.read_text("utf-8"))
    return {"schema": 1, "isogloss": version("isogloss"), "suites": {}}


def _unscored(run: Run, scores: dict) -> list[str]:
    """Suites that are asked for and have no scores, or scores made in another way."""
    done = {name for name, suite in scores["suites"].items() if suite["settings"] == _how(run, name)}
    return [name for name in run.config.evaluate.suites if name not in done]


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
        ConfigError: The model is not there, or the carrier does not fit it.
    """
    tokenizer = load_tokenizer(run.config.model)
    check_base(run.config.model, tokenizer, weights=not run.tuned.exists())
    refuse_misfit(run.config)
    if not run.tuned.exists():
        _ = run.english  # refuses data that is not there
        _check_lengths(run, foreseen_rows(run, tokenizer))
    settings = run.config.evaluate
    for name in settings.suites:
        if not _in_suite(load_suite(name, run.data_root, settings, run.measured, 1, 1), run.measured):
            raise DataError(f"{name} has none of {', '.join(run.measured)}; take it out of evaluate.suites")
