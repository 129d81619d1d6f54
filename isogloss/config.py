"""Settings: strict, frozen, and their own manual; the YAML file is their image. Imports no torch."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isogloss.errors import ConfigError
from isogloss.languages import XGLUE_TWELVE, UnknownLanguageError, resolve

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class DemoData(Settings):
    """The instruction set that comes with the package."""

    type: Literal["demo"] = "demo"
    english_items: Count = 9_000
    """English items for stage 1."""


class MassiveData(Settings):
    """MASSIVE: virtual-assistant utterances with intent, scenario and slots, parallel in 51 languages."""

    type: Literal["massive"] = "massive"
    tasks: tuple[Literal["intent", "scenario", "slot"], ...] = ("intent", "scenario", "slot")
    """What is asked about an utterance; slots are asked in stage 1 only."""
    english_items: Count | None = None
    """English utterances for stage 1; all of them if not given."""


class ParallelFile(Settings):
    """Parallel JSON lines: one object with all languages, or one row per language sharing an id."""

    type: Literal["parallel"] = "parallel"
    path: Path
    """The file; relative to the folder where the command runs."""


class ChatFile(Settings):
    """Chat-format JSON lines in one language: messages with a user and an assistant turn."""

    type: Literal["chat"] = "chat"
    path: Path
    """The file."""
    language: str = "en"
    """The language of its rows."""


class TableFile(Settings):
    """Anything `datasets.load_dataset` opens locally: Parquet, CSV, JSON."""

    type: Literal["table"] = "table"
    path: Path
    """The file or folder."""
    columns: dict[str, str]
    """From our field (id, task, language, instruction, response, or sw.instruction …) to the table's column."""


Data = Annotated[DemoData | MassiveData | ParallelFile | ChatFile | TableFile, Field(discriminator="type")]


class Languages(Settings):
    """Which languages are taught, how they are related, and how much data each may use."""

    targets: tuple[str, ...] = XGLUE_TWELVE
    """Language codes of any kind the registry knows."""
    tree: Literal["families", "flat", "shared"] = "families"
    """How adapters are shared: by language family, not at all, or by all languages."""
    high: tuple[str, ...] = ("ar", "es", "fr", "ru", "de", "zh")
    """Languages with plenty of data."""
    middle: tuple[str, ...] = ("bg", "el", "hi", "th", "tr", "vi")
    """Languages with some data."""
    items: dict[Literal["high", "middle", "low"], Count] = {"high": 512, "middle": 192, "low": 48}
    """Parallel items per language of each class; a language in neither list is low."""

    def amount(self, code: str) -> int:
        """Parallel items that a language may use."""
        return self.items["high" if code in self.high else "middle" if code in self.middle else "low"]


class Selection(Settings):
    """Which English items are good enough to learn from."""

    enabled: bool = True
    """Drop empty, degenerate, truncated, wrong-language and duplicate items."""
    keep: Fraction = 1.0
    """Share kept by instruction-following difficulty under the base model; 1 keeps all and skips scoring."""
    max_chars: Count = 4_000
    """Longest response."""


class Tune(Settings):
    """Stage 1: English instructions tune the base."""

    method: Literal["full", "lora"] = "full"
    """All weights, or a LoRA that is merged at the end."""
    lora_rank: Count = 16
    """Rank, where the method is lora."""
    selection: Selection = Selection()
    epochs: Positive = 2.0
    """Passes over the selected items."""
    batch: Count = 32
    """Rows per optimiser step."""
    accumulate: Count = 1
    """Micro-batches per optimiser step."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    privileged: Fraction = 0.1
    """Share of items that are read once more behind the teacher's texts and their own answer."""


class Ranks(Settings):
    """Adapter rows per node."""

    root: Annotated[int, Field(ge=0)] = 8
    family: Annotated[int, Field(ge=0)] = 4
    language: Annotated[int, Field(ge=0)] = 4


class Carrier(Settings):
    """What a node's text is distilled into."""

    type: Literal["lora"] = "lora"
    ranks: Ranks = Ranks()
    scaling: Positive = 2.0
    """What the adapter's output is multiplied by (alpha / r)."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Modules of the model that carry adapters."""


class Distill(Settings):
    """Stage 2: the hierarchy of prompts is distilled into the carriers."""

    carrier: Carrier = Carrier()
    texts: Path | None = None
    """Node texts; the package's own if not given."""
    responses: Literal["reference", "teacher"] = "reference"
    """Score the data's own responses, or the reference model's English answers."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """Between teacher and student on response tokens."""
    temperature: Positive = 1.0
    """Of the divergence."""
    kl: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the divergence per response token."""
    ce: Annotated[float, Field(ge=0)] = 1.0
    """Weight of cross-entropy per response token."""
    hidden: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the hidden-state term (InfoNCE) per row."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """Decoder layer that the hidden-state term reads; half of the layers if not given."""
    retain: Fraction = 0.1
    """Share of rows that are English, answered through the root alone as the reference model answers."""
    balance: Positive = 2.0
    """Temperature by which languages are balanced: 1 in proportion to data, larger more evenly."""
    epochs: Positive = 8.0
    """Passes over the parallel items of all languages together."""
    batch: Count = 32
    """Rows per optimiser step."""
    accumulate: Count = 1
    """Micro-batches per optimiser step."""
    lr: Positive = 4e-3
    """Peak learning rate."""
    max_prompt: Count = 512
    """Longest prompt in tokens, the teacher's included; longer ones are refused."""


class Evaluate(Settings):
    """What is measured before and after."""

    suites: tuple[Literal["demo", "massive", "flores101", "xnli"], ...] = ("demo",)
    """Suites, each with a table of its own in the report."""
    split: Literal["dev", "test"] = "test"
    """Split of every suite that has it; choose settings on dev only."""
    items: Count = 280
    """Items per suite and language, at most."""
    sentences: Count = 300
    """Parallel sentences for retrieval, at most."""
    max_new_tokens: Count = 24
    """Longest answer."""
    batch: Count = 64
    """Prompts per forward."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """Decoder layer for retrieval; chosen on dev sentences if not given."""


class Config(Settings):
    """A whole run."""

    run: Path = Path("runs/demo")
    """The run's folder."""
    seed: int = 0
    """Of everything drawn at random."""
    model: str = "demo"
    """The base: `demo` (embedded), a local folder, or a hub name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; auto takes bfloat16 where the processor multiplies it."""
    data_root: Path | None = None
    """Folder of the real data sets; the environment variable ISOGLOSS_DATA if not given."""
    languages: Languages = Languages()
    data: Data = DemoData()
    tune: Tune = Tune()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()


def load_config(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Settings of a YAML file with `a.b=c` overrides; without a file, the embedded default.

    Raises:
        ConfigError: All that is wrong, one line each, with file, line and the nearest valid name.
    """
    text, where = "", "settings"
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; name a YAML file of settings")
        text, where = path.read_text("utf-8"), str(path)
    try:
        entries = yaml.safe_load(text) or {}
        lines = _lines(yaml.compose(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{at}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"{where}:1: settings are written as name: value")
    for override in overrides:
        _override(entries, override)
    return _validate(entries, where, lines)


def _override(entries: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: write it as name=value, for example --set distill.lr=0.001")
    *parents, last = name.split(".")
    for parent in parents:
        entries = entries.setdefault(parent, {})
        if not isinstance(entries, dict):
            raise ConfigError(f"--set {override}: {parent} has no settings below it")
    entries[last] = yaml.safe_load(value)


def _validate(entries: dict[str, Any], where: str, lines: dict[tuple, int]) -> Config:
    if isinstance(entries.get("data"), dict):
        entries["data"].setdefault("type", "demo")
    try:
        config = Config.model_validate_json(json.dumps(entries, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(fault, where, lines) for fault in error.errors())) from None
    try:
        targets = tuple(dict.fromkeys(resolve(code).code for code in config.languages.targets))
    except UnknownLanguageError as error:
        raise ConfigError(
            f"{_at(where, lines, ('languages', 'targets'))}: languages.targets: {error}"
        ) from None
    if "en" in targets:
        raise ConfigError(
            f"{_at(where, lines, ('languages', 'targets'))}: languages.targets: English is the source; leave en out"
        )
    return config.model_copy(update={"languages": config.languages.model_copy(update={"targets": targets})})


def _fault(fault: Any, where: str, lines: dict[tuple, int]) -> str:
    path = tuple(part for part in fault["loc"] if part not in _TAGS)
    name = ".".join(map(str, path))
    at = _at(where, lines, path)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _names(path[:-1]), n=1, cutoff=0.4)
        hint = (
            f"; did you mean {near[0]}?"
            if near
            else f"; the settings there are {', '.join(_names(path[:-1]))}"
        )
        return f"{at}: {name} is not a setting{hint}"
    message = fault["msg"].replace("Input should be", "it should be")
    given = "" if fault["type"] == "missing" else f" is {json.dumps(fault['input'], default=str)}"
    return f"{at}: {name}{given}: {message}"


_TAGS = ("demo", "massive", "parallel", "chat", "table")
"""Tags of unions, which pydantic puts into a path and no user wrote."""


def _names(path: tuple) -> list[str]:
    """Setting names below a path."""
    model: Any = Config
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    if hasattr(model, "model_fields"):
        return list(model.model_fields)
    return sorted(
        {n for kind in (DemoData, MassiveData, ParallelFile, ChatFile, TableFile) for n in kind.model_fields}
    )


def _at(where: str, lines: dict[tuple, int], path: tuple) -> str:
    while path and path not in lines:
        path = path[:-1]
    return f"{where}:{lines[path]}" if path else where


def _lines(node: yaml.Node | None, path: tuple = ()) -> dict[tuple, int]:
    """The line of every key of a YAML document."""
    found: dict[tuple, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            found[here] = key.start_mark.line + 1
            found.update(_lines(value, here))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            found[(*path, number)] = value.start_mark.line + 1
            found.update(_lines(value, (*path, number)))
    return found


def dump_config(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
