"""A run's folder: its settings, what lies in it, and who may write to it."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import processes
from isogloss.adapters.fit import lora_shape
from isogloss.adapters.grouping import families_of_file, random_families
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import Tree, build_tree, family_name, shaped
from isogloss.config import Config, dump_config, load_config, root_of_environment
from isogloss.data.counting import of_fixed_size
from isogloss.data.examples import ParallelExample
from isogloss.data.parallel_text import Pair, pairs_for
from isogloss.data.sources import english_examples, lacking, left_out, nothing_in, parallel_examples
from isogloss.errors import DataError, RunError
from isogloss.files import (
    content_hash,
    locked,
    read_json,
    write_text,
)
from isogloss.model.load import (
    load_model,
    load_tokenizer,
    pick_dtype,
)
from isogloss.pipeline import bundle
from isogloss.pipeline.ledger import Ledger
from isogloss.progress import Progress

E = TypeVar("E", ParallelExample, Pair)
SILENCE = 5.0
"""Seconds after which a user is told what is being waited for."""


class ProgressReporter:
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
    reporter: ProgressReporter

    @property
    def folder(self) -> Path:
        return self.config.run

    @property
    def tuned(self) -> Path:
        return self.folder / "tuned"

    @property
    def trained(self) -> Path:
        """The adapters of all nodes, once stage 2 has trained them."""
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
        return of_fixed_size(load_tokenizer(str(self.tuned))) if self.tuned.exists() else self.base_tokenizer

    @cached_property
    def base_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, with the chat template that the settings want."""
        return of_fixed_size(load_tokenizer(self.config.model, self.config.chat_template))

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
        """By language, its family in the adapters that are there; nothing before stage 2."""
        if not self.trained.exists():
            return {}
        try:
            with safe_open(self.trained, "pt") as file:
                return json.loads((file.metadata() or {}).get("families", "{}"))
        except SafetensorError as error:
            raise RunError(
                f"{self.trained} is damaged ({error}); remove it and run `isogloss distill` again"
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
        """The tree that the adapters were trained on, else the one that the settings ask for.

        Learned families are Glottolog's until `run_distill` has learned them.
        """
        return self.tree_of(self.families) if self.families else self._planned_tree()

    def tree_of(self, families: Mapping[str, str]) -> Tree:
        """A tree of these languages with the settings' ranks."""
        shape = self.config.languages.tree
        ranks = self.config.distill.adapter.levels
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

    @property
    def leaks(self) -> Path:
        """Ids of training examples that stand in what is evaluated; there once a stage has begun."""
        return self.folder / "leaks.json"

    def _clean(self, examples: Iterable[E]) -> list[E]:
        """Examples or pairs without those that leak."""
        if not self.leaks.exists():
            return list(examples)
        remedy = "remove it, and what leaks is looked for again"
        leaking = set(read_json(self.leaks, "left_out", remedy)["left_out"])
        return [one for one in examples if one.id not in leaking]

    @property
    def english(self) -> list[ParallelExample]:
        """What stage 1 may read."""
        return self._clean(self._all_english)

    @property
    def examples(self) -> list[ParallelExample]:
        """What stage 2 may read."""
        return self._clean(self._all_examples)

    @cached_property
    def _all_english(self) -> list[ParallelExample]:
        return english_examples(self.config, self.data_root, self.reporter.say_once)

    @cached_property
    def _all_examples(self) -> list[ParallelExample]:
        targets = self.config.languages.targets
        return parallel_examples(self.config, self.data_root, targets, self.reporter.say_once)

    def pairs(self, codes: Sequence[str], use: str) -> dict[str, list[Pair]]:
        """By language, pairs of sentences without any task, as often as they are read for a use."""
        sources = [source for source in self.config.parallel_text if use in source.use]
        found = pairs_for(sources, self.data_root, codes, self.config.seed)
        return {code: clean for code, pairs in found.items() if (clean := self._clean(pairs))}

    @property
    def taught(self) -> tuple[str, ...]:
        """The languages that have adapters; before stage 2 the targets, all of which must have data."""
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
        with self.reporter.waiting(f"Loading {self.tuned}"):
            model = load_model(
                str(self.tuned),
                self.dtype,
                four_bit=self.config.four_bit,
                shard=learning and self.config.shard,
            )
        return model.requires_grad_(False)

    def student(self, model: PreTrainedModel, *, trained: bool, tree: Tree | None = None) -> TreeLora:
        """M with the adapters of the run's tree, or of another."""
        torch.manual_seed(self.config.seed)
        shape = lora_shape(model, self.config.distill.adapter)
        adapters = TreeLora(model, tree or self.tree, **shape)
        if trained:
            if not self.trained.exists():
                raise RunError(f"{self.folder} has no adapters; run `isogloss distill` first")
            adapters.load_state(load_file(self.trained))
        return adapters


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


def open_run(config: Config, reporter: ProgressReporter | None = None) -> Run:
    """Make the run's folder, or check that it belongs to these settings.

    How it is evaluated may change, where the data and the folder itself lie, and how adapters are trained as
    long as there are none: English is tuned without it.

    Raises:
        RunError: The folder was made with other settings, or another process writes to it.
    """
    run = Run(config, reporter or ProgressReporter())
    _keep_settings(run)
    return run


@writing
def _keep_settings(run: Run) -> None:
    config, file, text = run.config, run.folder / "config.yaml", dump_config(run.config)
    if file.exists():
        free = {"evaluate": config.evaluate, "data_root": config.data_root, "run": config.run}
        free["report_to"] = config.report_to
        before = load_config(run.folder)
        # Stage 1 may have read the texts.
        told = config.tune.teacher_prompt_fraction and before.distill.texts != config.distill.texts
        if not run.trained.exists() and not told:
            free["distill"] = config.distill
        if (theirs := dump_config(before.model_copy(update=free))) != text:
            raise RunError(
                f"{config.run} was made with other settings ({_difference(theirs, text)}); "
                "use another run folder or these settings"
            )
    if processes.is_main():
        write_text(file, text)
        _point_to_base(run)


def load_run(folder: Path, reporter: ProgressReporter | None = None) -> Run:
    """An existing run.

    Raises:
        RunError: No run lies there.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder; it has no config.yaml")
    bundle.restore(folder, (reporter or ProgressReporter()).say)
    run = Run(load_config(folder), reporter or ProgressReporter())
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
        if (file.parents[1] / bundle.MANIFEST).exists():  # a bundle is handed on as it was written
            continue
        remedy = f"remove {file.parent} and write it anew with `isogloss export`"
        config = read_json(file, "base_model_name_or_path", remedy)
        if config["base_model_name_or_path"] != base:
            write_text(file, json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True))


def _difference(theirs: str, ours: str) -> str:
    for a, b in zip(theirs.split("\n"), ours.split("\n"), strict=False):
        if a != b:
            return f"{a.strip()} there, {b.strip()} here"
    return "of another version"
