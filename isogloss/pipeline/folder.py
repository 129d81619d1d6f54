"""The run folder: its settings, its contents, and exclusive write access."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

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
from isogloss.data.sources import english_examples, parallel_examples, refuse_unusable
from isogloss.errors import DataError, RunError
from isogloss.files import locked, read_json, write_text
from isogloss.model.fingerprint import file_hashes
from isogloss.model.load import load_model, load_tokenizer, pick_dtype
from isogloss.pipeline import bundle
from isogloss.pipeline.ledger import Ledger
from isogloss.progress import Progress

E = TypeVar("E", ParallelExample, Pair)
SILENCE = 5.0
"""Seconds of waiting after which the user is told what the run is waiting for."""


class ProgressReporter:
    """Receives messages and progress of a run; ignores them unless a subclass, as in the CLI, shows them."""

    def say(self, text: str) -> None:
        """Report one line of text."""

    def say_once(self, text: str) -> None:
        """Report a line unless it was reported before: both stages read the same files."""
        said = self.__dict__.setdefault("_said", set())
        if text not in said:
            said.add(text)
            self.say(text)

    @contextmanager
    def bar(self, what: str) -> Iterator[Progress]:
        """Report progress of long-running work inside the context."""
        yield lambda done, of: None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Wrap work without progress; report `what` if it takes longer than `SILENCE`."""
        timer = threading.Timer(SILENCE, self.say, (f"{what} …",))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass(frozen=True)
class Run:
    """A run: its settings and the contents of its folder."""

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
        """File with the adapters of all nodes; exists once stage 2 has finished."""
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

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tuned model's tokenizer; the base's before stage 1."""
        return self._tuned_tokenizer if self.tuned.exists() else self.base_tokenizer

    @cached_property
    def _tuned_tokenizer(self) -> PreTrainedTokenizerBase:
        return of_fixed_size(load_tokenizer(str(self.tuned)))

    @cached_property
    def base_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, with the configured chat template."""
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
    def families(self) -> dict[str, str]:
        """Family of each language in the trained adapters; empty before stage 2."""
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
        """Everything that the reference model's answers depend on besides the prompt: file hashes and dtype.

        Raises:
            RunError: Stage 1 has not been run.
        """
        self._need_tuned()
        dtype = str(self.dtype).removeprefix("torch.")
        return file_hashes(self.tuned) | {"dtype": f"nf4 in {dtype}" if self.config.four_bit else dtype}

    def _need_tuned(self) -> None:
        if not self.tuned.exists():
            raise RunError(f"{self.folder} has no tuned model; run `isogloss tune` first")

    @property
    def tree(self) -> Tree:
        """The tree of the trained adapters, or the configured one before stage 2."""
        return self.tree_of(self.families) if self.families else self._planned_tree()

    def tree_of(self, families: Mapping[str, str]) -> Tree:
        """Build a tree of these languages with the configured ranks."""
        ranks = shaped(self.config.languages.tree, self.config.distill.adapter.levels)
        return build_tree(list(families), families=families, ranks=ranks)

    def _planned_tree(self) -> Tree:
        shape, codes = self.config.languages.tree, self.taught
        if shape == "random":
            return self.tree_of(random_families(codes, self.config.seed))
        if isinstance(shape, Path):
            return self.tree_of(families_of_file(shape, codes))
        return self.tree_of({code: family_name(code) for code in codes})

    @property
    def leaks(self) -> Path:
        """File with the IDs of training examples that occur in the suites; exists once a stage has begun."""
        return self.folder / "leaks.json"

    @property
    def leak_check(self) -> dict[str, Any]:
        """The last leak check: its suites, the excluded IDs, and those that stage 1 was tuned on.

        Empty before stage 1.
        """
        if not self.leaks.exists():
            return {}
        return read_json(self.leaks, "left_out", "remove it to repeat the leak check")

    def clean(self, examples: Iterable[E]) -> list[E]:
        """Remove the examples or pairs listed in `leaks.json`."""
        leaking = set(self.leak_check.get("left_out", ()))
        return [one for one in examples if one.id not in leaking]

    @property
    def english(self) -> list[ParallelExample]:
        """Examples that stage 1 may use."""
        return self.clean(self._all_english)

    @property
    def tuned_on_leaks(self) -> list[ParallelExample]:
        """Examples that stage 1 was tuned on before a later leak check excluded them."""
        ids = set(self.leak_check.get("tuned_on", ()))
        return [example for example in self._all_english if example.id in ids]

    @property
    def examples(self) -> list[ParallelExample]:
        """Examples that stage 2 may use."""
        return self.clean(self._all_examples)

    @cached_property
    def _all_english(self) -> list[ParallelExample]:
        return english_examples(self.config, self.data_root, self.reporter.say_once)

    @cached_property
    def _all_examples(self) -> list[ParallelExample]:
        targets = self.config.languages.targets
        added = [code for code in self.families if code not in targets]
        if added:
            with suppress(DataError):  # they may have been added from other data
                return parallel_examples(self.config, self.data_root, [*targets, *added])
        return parallel_examples(self.config, self.data_root, targets, self.reporter.say_once)

    def pairs(self, codes: Sequence[str], use: str) -> dict[str, list[Pair]]:
        """Return parallel sentence pairs by language for a use, repeated as often as configured."""
        sources = [source for source in self.config.parallel_text if use in source.use]
        found = pairs_for(sources, self.data_root, codes, self.config.seed)
        return {code: clean for code, pairs in found.items() if (clean := self.clean(pairs))}

    @property
    def taught(self) -> tuple[str, ...]:
        """The languages with adapters; before stage 2 the targets, all of which must have data."""
        return tuple(self.families) or self._targets

    @cached_property
    def _targets(self) -> tuple[str, ...]:
        refuse_unusable(self.config, self.examples, self.config.languages.targets)
        return self.config.languages.targets

    @property
    def measured(self) -> tuple[str, ...]:
        """The taught languages and those that are only evaluated."""
        return tuple(dict.fromkeys(self.taught + self.config.evaluate.also))

    def reference_model(self, *, learning: bool = False, measured: bool = True) -> PreTrainedModel:
        """Load the reference model, frozen and in evaluation mode.

        Args:
            learning: Whether adapters will be trained on it; the model may then be sharded over processes.
            measured: Whether scores depend on it. If not, a machine that does not support 4 bits loads the
                weights as they are, with a warning.

        Raises:
            RunError: Stage 1 has not been run.
        """
        self._need_tuned()
        four_bit = self.config.four_bit
        if four_bit and not measured and not torch.cuda.is_available():
            self.reporter.say(
                f"Warning: {self.folder} was trained in 4 bits, which needs a GPU: answers come from the "
                "weights before quantisation, and can differ"
            )
            four_bit = False
        with self.reporter.waiting(f"Loading {self.tuned}"):
            shard = learning and self.config.shard
            model = load_model(str(self.tuned), self.dtype, four_bit=four_bit, shard=shard)
        return model.requires_grad_(False)

    def student(self, model: PreTrainedModel, *, trained: bool, tree: Tree | None = None) -> TreeLora:
        """Add adapters to the reference model.

        Args:
            trained: Whether to load the trained weights; otherwise they are newly initialised.
            tree: Tree of the adapters; defaults to the run's.

        Raises:
            RunError: Trained weights are requested, but stage 2 has not been run.
        """
        torch.manual_seed(self.config.seed)
        adapters = TreeLora(model, tree or self.tree, **lora_shape(model, self.config.distill.adapter))
        if trained:
            if not self.trained.exists():
                raise RunError(f"{self.folder} has no adapters; run `isogloss distill` first")
            adapters.load_state(load_file(self.trained))
        return adapters


P = ParamSpec("P")
T = TypeVar("T")


def writing(stage: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Decorate a function that writes to a run folder: the folder is locked while it runs."""

    @wraps(stage)
    def alone(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        with locked(run.folder) if processes.is_main() else nullcontext():
            return stage(run, *args, **kwargs)

    return alone


def open_run(config: Config, reporter: ProgressReporter | None = None) -> Run:
    """Return a run after `open_folder`."""
    run = Run(config, reporter or ProgressReporter())
    open_folder(run)
    return run


@writing
def open_folder(run: Run) -> None:
    """Create the run folder, or check that it was made with these settings.

    The settings of the evaluation and of trackers may change, and so may the location of the data and of the
    folder. Those of `distill` may change until adapters are trained, as stage 1 does not use them.

    Raises:
        RunError: The folder was made with other settings, or another process writes to it.
    """
    config, file, text = run.config, run.folder / "config.yaml", dump_config(run.config)
    if file.exists():
        before, names = load_config(run.folder), ["evaluate", "data_root", "run", "report_to"]
        if not run.trained.exists():
            names.append("distill")
        free = {name: getattr(config, name) for name in names}
        if (theirs := dump_config(before.model_copy(update=free))) != text:
            raise RunError(
                f"{config.run} was made with other settings ({_difference(theirs, text)}); "
                "use another run folder or these settings"
            )
    if processes.is_main():
        write_text(file, text)
        _point_to_base(run)


def load_run(folder: Path, reporter: ProgressReporter | None = None) -> Run:
    """Open an existing run; a bundle is restored first.

    Raises:
        RunError: The folder is not a run folder.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is not a run folder; it has no config.yaml")
    reporter = reporter or ProgressReporter()
    bundle.restore(folder, reporter.say)
    run = Run(load_config(folder), reporter)
    if processes.is_main():
        with suppress(OSError):  # the run may be read-only
            _point_to_base(run)
    return run


def _point_to_base(run: Run) -> None:
    """Write the base's current path into the adapter configs: the run may have been moved or copied.

    PEFT resolves relative paths against the working directory, so the path must be absolute.
    """
    base = str(run.tuned.resolve())
    places = ("adapters/*/adapter_config.json", "exports/*/*/adapter_config.json")
    for file in chain.from_iterable(map(run.folder.glob, places)):
        if (file.parents[1] / bundle.MANIFEST).exists():  # a bundle must not change
            continue
        remedy = f"remove {file.parent} and write it again with `isogloss export`"
        config = read_json(file, "base_model_name_or_path", remedy)
        if config["base_model_name_or_path"] != base:
            write_text(file, json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True))


def _difference(theirs: str, ours: str) -> str:
    for a, b in zip(theirs.split("\n"), ours.split("\n"), strict=False):
        if a != b:
            return f"{a.strip()} there, {b.strip()} here"
    return "of another version"
