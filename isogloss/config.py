"""Settings: strict, frozen, and their own manual; the YAML file is their image. Imports no torch.

Flow: YAML file, then --set → entries, each with the place it was written → validation → `Config`.
Everything that is wrong is said at once, one line each: where, what, what would be right.
"""

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yaml.composer import ComposerError

from isogloss.bases import PACKAGED, SUFFIX, unavailable
from isogloss.data.formats.records import on_hub
from isogloss.defaults import EMBEDDED, Facts, by_model, look_up
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE, XGLUE_TWELVE, languages, resolve
from isogloss.tracking import Tracker

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


def _code(spelling: str) -> str:
    return resolve(spelling).code  # an UnknownLanguageError is a ValueError: one line, with the nearest code


def _target(code: str) -> str:
    if code == SOURCE:
        raise ValueError("English is what all others follow; leave it out")
    return code


def _once(values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _refusal(name: str, message: str) -> PydanticCustomError:
    """A setting that cannot stand beside its neighbours: `tune.accumulate must divide batch`."""
    return PydanticCustomError("refusal", "{message}", {"name": name, "message": message})


def _without_effect(settings: S, *cases: tuple[Any, Iterable[str], str]) -> S:
    """Refuse what was changed and does nothing beside its neighbours.

    A value that equals its default passes, so that resolved settings can be read again.

    Args:
        cases: Whether settings are without effect, their names, and why.
    """
    for idle, names, why in cases:
        for name in names:
            if idle and getattr(settings, name) != type(settings).model_fields[name].default:
                raise _refusal(name, f"has no effect {why}")
    return settings


def home(path: T) -> T:
    """A path, or a text that may be one, with a leading `~` written out."""
    written = os.path.expanduser(path)  # type: ignore[call-overload]  # noqa: PTH111  # keeps an unknown ~user
    return type(path)(written)  # type: ignore[call-arg]


def _divided(stage: S) -> S:
    if stage.batch % stage.accumulate:  # type: ignore[attr-defined]  # both stages have both
        raise _refusal("accumulate", f"must divide batch, which is {stage.batch}")  # type: ignore[attr-defined]
    return stage


Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Rank = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Place = Annotated[Path, AfterValidator(home)]
"""A file or folder; `~` is the user's home."""
ModelName = Annotated[Text, AfterValidator(home)]
"""A model's folder, in which `~` is the user's home, or its hub name."""
Code = Annotated[str, AfterValidator(_code)]
Others = Annotated[tuple[Annotated[Code, AfterValidator(_target)], ...], AfterValidator(_once)]
"""Languages that follow English."""
Targets = Annotated[
    tuple[Annotated[Code, AfterValidator(_target)], ...], Field(min_length=1), AfterValidator(_once)
]


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Source(Settings):
    """Where instructions come from."""

    weight: Positive = 1.0
    """Its share of a language's items, in proportion to the weights of all sources that have the language;
    what one of them cannot fill goes to the others."""


class DemoData(Source):
    """The instruction set that comes with the package."""

    type: Literal["demo"] = "demo"
    """Which kind of data: demo, massive, sib200, xnli, pawsx, mlqa, topic, parallel, chat or table."""
    english_items: Count = 8_000
    """English items for stage 1."""


class LabelledData(Source):
    """A labelled set under the data root, put into instructions."""

    english_items: Count | None = None
    """English items for stage 1, drawn over tasks and labels; all of them if not given."""
    responses: Literal["english", "all"] = "english"
    """Whose labels are read: of English alone, or of every language."""


class MassiveData(LabelledData):
    """MASSIVE: virtual-assistant utterances with intent, scenario and slots, parallel in 51 languages."""

    type: Literal["massive"] = "massive"
    """MASSIVE's train partition."""
    tasks: Annotated[tuple[Literal["intent", "scenario", "slot"], ...], AfterValidator(_once)] = (
        "intent",
        "scenario",
        "slot",
    )
    """What is asked about an utterance; slots are asked in stage 1 only."""

    @model_validator(mode="after")
    def _for_both_stages(self) -> "MassiveData":
        if set(self.tasks) <= {"slot"}:
            raise _refusal("tasks", "must name intent or scenario, as slots are asked in stage 1 only")
        return self


class Sib200Data(LabelledData):
    """SIB-200: the topic of a sentence, one of seven."""

    type: Literal["sib200"] = "sib200"
    """SIB-200's train file; its sentences are lines of FLORES, which the suites then leave out."""


class XnliData(LabelledData):
    """XNLI: does a hypothesis follow from a premise."""

    type: Literal["xnli"] = "xnli"
    """The part of XNLI's dev set that is never reported."""


class PawsxData(LabelledData):
    """PAWS-X: do two sentences of nearly the same words mean the same."""

    type: Literal["pawsx"] = "pawsx"
    """The part of PAWS-X's dev set that is never reported."""


class MlqaData(LabelledData):
    """MLQA: a question about a passage, answered with words of it."""

    type: Literal["mlqa"] = "mlqa"
    """The part of MLQA's dev set that is never reported."""
    max_chars: Count = 1_000
    """Longest passage; questions about longer ones are not asked."""


class TopicData(Source):
    """Parallel text without any label, asked for its topic in SIB-200's words; the model answers in English."""

    type: Literal["topic"] = "topic"
    """Sentences of parallel text, for stage 2 alone."""
    sentences: Annotated[
        tuple[Literal["tatoeba", "tico19", "course_text"], ...], Field(min_length=1), AfterValidator(_once)
    ] = ("tatoeba", "tico19")
    """Which sets under the data root; they take turns."""
    max_chars: Count = 400
    """Longest sentence; pairs with a longer one are left out."""


class FileData(Source):
    """A file of the user's own."""

    english_items: Count | None = None
    """English items for stage 1, drawn over tasks and labels; all of them if not given."""
    path: Place
    """The file or folder, relative to the folder where the command runs, or a data set of the hub as
    hub:OWNER/NAME, with /CONFIG and @REVISION behind it where they are needed."""
    split: str | None = None
    """Which part of a folder or data set is read; train where it holds several and none is named."""


class ParallelFile(FileData):
    """Parallel JSON lines: one object with all languages, or one row per language sharing an id."""

    type: Literal["parallel"] = "parallel"
    """A file of parallel JSON lines."""


class ChatFile(FileData):
    """Chats: messages with a user and an assistant turn; languages are joined by id."""

    type: Literal["chat"] = "chat"
    """Chats, as JSON lines or any other table."""
    language: Code = "en"
    """The language of the rows that name none."""


class TableFile(FileData):
    """Parquet, CSV, JSON or Arrow, or a folder of them with splits and shards, as data sets are published."""

    type: Literal["table"] = "table"
    """A table, or a folder of them."""
    columns: dict[str, str]
    """From our field (id, task, language, instruction, response, sw.instruction …) to the table's column."""


AnySource = Annotated[
    DemoData
    | MassiveData
    | Sib200Data
    | XnliData
    | PawsxData
    | MlqaData
    | TopicData
    | ParallelFile
    | ChatFile
    | TableFile,
    Field(discriminator="type"),
]
_ONE, _SEVERAL = "one source", "several sources"
Data = Annotated[
    Annotated[AnySource, Tag(_ONE)]
    | Annotated[Annotated[tuple[AnySource, ...], Field(min_length=1)], Tag(_SEVERAL)],
    Discriminator(lambda given: _SEVERAL if isinstance(given, list | tuple) else _ONE),
]


class ParallelText(Settings):
    """Pairs of sentences without any task, English and another language, under the data root."""

    type: Literal["tatoeba", "tico19", "course_text", "massive"]
    """Tatoeba's sentences, TICO-19's about health, course text (machine-translated), or MASSIVE's train
    utterances."""
    items: Count = 2_000
    """Pairs per language, at most."""
    low_resource_factor: Positive = 1.0
    """How many times as often a pair of a low-resource language is read."""
    max_chars: Count = 400
    """Longest sentence; pairs with a longer one are left out."""
    use: Annotated[tuple[Literal["alignment", "translation"], ...], Field(min_length=1)] = (
        "alignment",
        "translation",
    )
    """`alignment`: bare sentences, for the hidden-state term; `translation`: instructions, both ways."""


class Amounts(Settings):
    """Parallel items per language of each resource class; `isogloss languages` shows the classes."""

    high: Count = 512
    """For a high-resource language."""
    middle: Count = 192
    """For a language of the middle class."""
    low: Count = 48
    """For a low-resource language."""


class Languages(Settings):
    """Which languages are taught, how they are related, and how much data each may use."""

    targets: Targets = XGLUE_TWELVE
    """Language codes of any kind the registry knows (`isogloss languages` lists them)."""
    tree: Literal["families", "learned", "random", "flat", "shared"] | Place = "families"
    """How adapters are shared: by language family, by groups that the tuned model represents alike, by groups
    dealt out at random, not at all, by all languages, or by the groups of a YAML file (`group: [codes]`)."""
    items: Amounts = Amounts()
    """Parallel items per language of each resource class, over all tasks together."""
    amounts: dict[Code, Count] = {}
    """Languages with an amount of their own, `code: items`."""

    def amount(self, code: str) -> int:
        """Parallel items that a language may use."""
        return self.amounts.get(code) or getattr(self.items, languages()[code].resource)


class Selection(Settings):
    """Which English items are good enough to learn from."""

    enabled: bool = True
    """Drop empty, degenerate, truncated, wrong-language and duplicate items."""
    keep: Share = 1.0
    """Share kept by instruction-following difficulty under the base model; 1 keeps all and skips scoring."""
    max_chars: Count = 4_000
    """Longest response."""

    @model_validator(mode="after")
    def _heeded(self) -> "Selection":
        return _without_effect(self, (not self.enabled, ["max_chars"], "where enabled is false"))


class Tune(Settings):
    """Stage 1: English instructions tune the base."""

    method: Literal["full", "lora"] = "full"
    """All weights, or a LoRA that is merged at the end; if not given, full for the embedded model and lora
    for every other."""
    lora_rank: Count = 16
    """Rank, where the method is lora; by the model if not given."""
    selection: Selection = Selection()
    """Which English items are good enough to learn from."""
    epochs: Positive = 1.5
    """Passes over the selected items; by the model if not given."""
    batch: Count = 32
    """Rows per optimiser step."""
    accumulate: Count = 1
    """Micro-batches per optimiser step."""
    lr: Positive = 1e-3
    """Peak learning rate; by the model if not given."""
    max_tokens: Count | None = None
    """Longest row, prompt and response together; the model's positions, at most 2048, if not given. Longer
    rows are left out."""
    privileged: Fraction = 0.1
    """Share of items that are read once more behind the teacher's texts and their own answer."""
    _whole_batches = model_validator(mode="after")(_divided)

    @model_validator(mode="after")
    def _heeded(self) -> "Tune":
        return _without_effect(self, (self.method == "full", ["lora_rank"], "with method full; take lora"))


class Ranks(Settings):
    """Adapter rows per node; most in the root, which a language of few items cannot fill alone. What is not
    given follows the model."""

    root: Rank = 12
    """Of the root, which all languages share."""
    family: Rank = 2
    """Of each language family."""
    language: Rank = 2
    """Of each language."""

    @model_validator(mode="after")
    def _some(self) -> "Ranks":
        if not self.root + self.family + self.language:
            raise _refusal("root", "must be above 0 where family and language are 0 too")
        return self


class LoraCarrier(Settings):
    """Low-rank adapters of a model's linear layers."""

    type: Literal["lora"] = "lora"
    """Which kind of carrier: lora, prefix or embedding."""
    ranks: Ranks = Ranks()
    """Adapter rows per node."""
    scaling: Positive = 2.0
    """What the adapter's output is multiplied by (alpha / r)."""
    targets: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_once)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Modules of the model that carry adapters."""
    layers: Count | None = None
    """Lowest decoder layers that carry adapters, two thirds of all if not given; those above stay the
    reference model's own in every language."""

    @property
    def levels(self) -> dict[str, int]:
        """Adapter rows per node of each level."""
        return self.ranks.model_dump()


class Lengths(Settings):
    """Virtual positions per node."""

    root: Rank = 8
    """Of the root, which all languages share."""
    family: Rank = 4
    """Of each language family."""
    language: Rank = 4
    """Of each language."""

    @model_validator(mode="after")
    def _some(self) -> "Lengths":
        if not self.root + self.family + self.language:
            raise _refusal("root", "must be above 0 where family and language are 0 too")
        return self


Init = Literal["random", "text", "parent"]


class PrefixCarrier(Settings):
    """Keys and values of every layer at virtual positions before the text."""

    type: Literal["prefix"] = "prefix"
    """Trained keys and values."""
    lengths: Lengths = Lengths()
    """Virtual positions per node."""
    init: Init = "text"
    """How a node begins: at random, as what the model makes of its text, or as a copy of its parent."""

    @property
    def levels(self) -> dict[str, int]:
        """Virtual positions per node of each level."""
        return self.lengths.model_dump()


class EmbeddingCarrier(Settings):
    """Soft tokens before the text."""

    type: Literal["embedding"] = "embedding"
    """Trained input embeddings."""
    lengths: Lengths = Lengths(root=16, family=8, language=8)
    """Virtual positions per node."""
    init: Init = "text"
    """How a node begins: at random, as what the model makes of its text, or as a copy of its parent."""

    @property
    def levels(self) -> dict[str, int]:
        """Virtual positions per node of each level."""
        return self.lengths.model_dump()


Carrier = Annotated[LoraCarrier | PrefixCarrier | EmbeddingCarrier, Field(discriminator="type")]


class SelfTeacher(Settings):
    """The frozen model itself, behind the privileged prompt."""

    type: Literal["self"] = "self"
    """Which teacher: self, model or server."""


class ModelTeacher(Settings):
    """Another model on this machine, behind its own rendering of the privileged prompt."""

    type: Literal["model"] = "model"
    """Another local model."""
    path: ModelName
    """Its folder, or hub name."""
    level: Literal["token", "sequence"] = "token"
    """Score each response token, or write the responses that are learned from. Token by token a teacher with
    another tokenizer covers the tokens that both cut alike."""
    top_k: Count = 32
    """Likeliest tokens kept at each place; the others share one bucket."""
    max_new_tokens: Count = 128
    """Longest answer, where level is sequence."""

    @model_validator(mode="after")
    def _heeded(self) -> "ModelTeacher":
        return _without_effect(
            self,
            (self.level == "token", ["max_new_tokens"], "where level is token, which writes nothing"),
            (self.level == "sequence", ["top_k"], "where level is sequence, which scores nothing"),
        )


class Endpoint(Settings):
    """An OpenAI-compatible endpoint, and how it is asked."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """The endpoint, up to and with /v1; a key has no place in it."""
    model: Text
    """The model's name there."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the server's key; the key itself is never written down."""
    concurrency: Count = 8
    """Requests at a time."""
    rate: Positive | None = None
    """Requests a second, at most."""
    timeout: Positive = 120.0
    """Seconds without a byte after which a request is made again."""
    attempts: Count = 8
    """How often a request is made before the work ends."""
    backoff: Positive = 1.0
    """Seconds of the first wait, at most; it doubles with every attempt."""


class ServerTeacher(Endpoint):
    """A model behind an OpenAI-compatible endpoint that returns prompts' log-probabilities, as vLLM does."""

    type: Literal["server"] = "server"
    """A served model; it must read the student's tokens."""
    top_k: Count = 32
    """Likeliest tokens kept at each place; vLLM returns 20 unless it is started with --max-logprobs."""


Teacher = Annotated[SelfTeacher | ModelTeacher | ServerTeacher, Field(discriminator="type")]


KL_ONLY = ("texts", "require_texts", "teacher_reads", "divergence", "temperature", "hear")
HIDDEN_ONLY = ("contrast", "fade", "layer")
"""Settings of stage 2 that one term of the loss alone heeds; the first three of the former are heeded by a
teacher that writes answers too."""


class Distill(Settings):
    """Stage 2: the carriers learn; where `kl` is above 0, the hierarchy of prompts is distilled into them."""

    carrier: Carrier = LoraCarrier()
    """What a node's text is distilled into."""
    texts: Place | None = None
    """Node texts; the package's own if not given."""
    require_texts: bool = False
    """Refuse a tree with a node that has no text; else it is silent."""
    teacher: Teacher = SelfTeacher()
    """Whose reading of the privileged prompt is learned: the frozen model's own, another's, or a server's."""
    teacher_view: Literal["english", "prompt"] = "prompt"
    """How the teacher reads a row: `english` – the English twin alone, where the answer is the same words in
    every language or one of a closed set; the privileged prompt elsewhere –, or always the prompt."""
    teacher_reads: Annotated[tuple[Literal["texts", "twin", "answer"], ...], AfterValidator(_once)] = (
        "texts",
        "twin",
        "answer",
    )
    """What stands before the instruction for the teacher: node texts, the English twin, and its answer."""
    responses: Literal["reference", "teacher"] = "reference"
    """Score the data's own responses, or the reference model's English answers."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """Between teacher and student on response tokens."""
    temperature: Positive = 1.0
    """Of the divergence."""
    hear: Literal["all", "right"] = "all"
    """Take the divergence at every response token, or only where the teacher finds the response's own token
    likeliest."""
    signal: Literal["hidden", "top_k"] = "hidden"
    """What is kept of the teacher: its last hidden states, which are exact, or its likeliest tokens with one
    bucket for the rest."""
    top_k: Count = 32
    """Tokens kept, where the signal is top_k; 4 bytes each per response token."""
    cache: Place | None = None
    """Folder in which the teacher's signals are kept; `cache` in the run's folder if not given."""
    checks: bool = True
    """Check before training that teacher and student are aligned, and tell their divergence per language."""
    kl: Weight = 0.0
    """Weight of the divergence per response token; 0 spares the teacher's reading: no prompt is distilled.
    If not given, 0 for the embedded model, which does better without (docs/log.md), and 1 for every other."""
    ce: Weight = 1.0
    """Weight of cross-entropy per response token."""
    hidden: Weight = 4.0
    """Weight of the hidden-state term (similarity distillation) per row."""
    contrast: Positive | None = None
    """Temperature of the hidden-state term, which divides its cosines; if not given, such that a twin is
    likened to ten on average."""
    fade: Fraction = 0.7
    """Share of the steps over which the weight of the hidden-state term falls to 0; 0 keeps it."""
    layer: Count | None = None
    """Decoder layer that the hidden-state term reads; two thirds of the way up if not given."""
    retain: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of rows that are English of stage 1, answered through the root alone as the reference model
    answers them: by divergence from it, whatever the other weights."""
    on_policy: Fraction = 0.0
    """Share of steps whose responses the student draws itself, scored live by the frozen model behind the
    privileged prompt."""
    sample_tokens: Count = 64
    """Longest response that is drawn on-policy, and longest English answer that the model writes, in tokens;
    an answer without an end within it is not learned from."""
    balance: Positive = 2.0
    """Temperature by which languages are balanced: 1 in proportion to data, larger more evenly."""
    epochs: Positive = 4.5
    """Passes over the parallel items of all languages together, English aside; by the model if not given."""
    batch: Count = 32
    """Rows per optimiser step."""
    accumulate: Count = 1
    """Micro-batches per optimiser step."""
    lr: Positive = 3e-3
    """Peak learning rate; by the model if not given."""
    gradient_checkpointing: bool = False
    """Compute each layer again in backward: less memory, more time; not with a prefix."""
    level_dropout: Fraction = 0.0
    """Probability that a row trains without its leaf, or, as often, without leaf and family."""
    shrinkage: Weight = 0.0
    """Pull of a node's rows toward its parent, divided by its number of training rows; lora only."""
    lr_b_ratio: Positive = 1.0
    """How many times larger the step of an adapter's B is than that of its A; lora only."""
    max_prompt: Count = 512
    """Longest prompt in tokens, the teacher's included; longer ones are refused."""
    _whole_batches = model_validator(mode="after")(_divided)

    @model_validator(mode="after")
    def _some_loss(self) -> "Distill":
        if not self.kl + self.ce + self.hidden:
            raise _refusal("kl", "must be above 0 where ce and hidden are 0 too")
        return self

    @model_validator(mode="after")
    def _exact(self) -> "Distill":
        if self.form[0] == "top_k" and self.temperature != 1:
            name = f"teacher.type is {self.teacher.type}" if self.scored_elsewhere else "signal is top_k"
            raise _refusal("temperature", f"must be 1 where {name}; with hidden it may be another")
        return self

    @model_validator(mode="after")
    def _kept_positions(self) -> "Distill":
        if self.gradient_checkpointing and self.carrier.type == "prefix":
            raise _refusal(
                "gradient_checkpointing",
                "must be false with carrier.type prefix: layers that are computed again read no past keys "
                "and values; take lora or embedding",
            )
        for name, usual in (("shrinkage", 0.0), ("lr_b_ratio", 1.0)):
            if self.carrier.type != "lora" and getattr(self, name) != usual:
                raise _refusal(
                    name, f"must be {usual:g} with carrier.type {self.carrier.type}; it is for lora"
                )
        return self

    @property
    def scored_elsewhere(self) -> bool:
        """Whether another model's scores of each token are learned from."""
        teacher = self.teacher
        return isinstance(teacher, ServerTeacher) or (
            isinstance(teacher, ModelTeacher) and teacher.level == "token"
        )

    @property
    def hears_itself(self) -> bool:
        """Whether the frozen model's own reading of the privileged prompts is needed before training."""
        return bool(self.kl) and self.on_policy < 1 and not self.scored_elsewhere

    @property
    def form(self) -> tuple[Literal["hidden", "top_k"], int]:
        """What is kept of all rows, and k: another teacher's scores are its likeliest tokens."""
        if self.scored_elsewhere and not isinstance(self.teacher, SelfTeacher):
            return "top_k", self.teacher.top_k
        return self.signal, self.top_k

    @model_validator(mode="after")
    def _teacher_is_heard(self) -> "Distill":
        if self.scored_elsewhere and not self.kl:
            raise _refusal(
                "kl", f"must be above 0 where the teacher is a {self.teacher.type} that scores tokens"
            )
        if self.on_policy and not self.kl:
            raise _refusal("kl", "must be above 0 where on_policy is")
        if self.teacher_view == "english":
            reasons = {
                "where kl is 0, which scores nothing": not self.kl,
                f"where teacher.type is {self.teacher.type}": self.teacher.type != "self",
                f"with carrier.type {self.carrier.type}": self.carrier.type != "lora",
                "where on_policy is above 0": bool(self.on_policy),
            }
            for why in (why for why, holds in reasons.items() if holds):
                raise _refusal("teacher_view", f"must be prompt {why}")
        if self.on_policy and self.teacher.type != "self":
            raise _refusal(
                "on_policy", f"must be 0 where teacher.type is {self.teacher.type}; only self is live"
            )
        return self

    @property
    def prompts_are_read(self) -> bool:
        """Whether a teacher reads the privileged prompts: to be learned from token by token, or to answer."""
        return bool(self.kl) or (isinstance(self.teacher, ModelTeacher) and self.teacher.level == "sequence")

    @model_validator(mode="after")
    def _heeded(self) -> "Distill":
        mute = "with kl 0, where no prompt is distilled; set distill.kl above 0"
        # A node of virtual positions begins as what its text says.
        begun = self.carrier.type != "lora" and self.carrier.init != "random"
        retained = "with kl and retain 0, where the teacher says nothing"
        kept = self.form[0] == "top_k" and not self.scored_elsewhere
        return _without_effect(
            self,
            (not self.prompts_are_read, ["teacher_reads", "require_texts"], mute),
            (not self.prompts_are_read and not begun, ["texts"], mute),
            (not self.kl, ["divergence", "temperature", "hear"], mute),
            (
                "texts" not in self.teacher_reads and not begun, ["texts", "require_texts"],
                "where teacher_reads has no texts",
            ),
            (self.on_policy, ["hear"], "on steps that are on-policy; set on_policy to 0"),
            (self.scored_elsewhere, ["signal"], "on what another teacher scores, which is its top_k"),
            (not self.kl and not self.retain, ["signal", "top_k"], retained),
            (self.on_policy == 1, ["signal", "top_k"], "where all steps are on-policy"),
            (self.on_policy == 1 and self.ce, ["ce"], "where all steps are on-policy; set it to 0"),
            (self.scored_elsewhere, ["top_k"], "on what another teacher scores; set teacher.top_k"),
            (not kept, ["top_k"], f"where signal is {self.signal}"),
            (not self.hidden, HIDDEN_ONLY, "with hidden 0"),
        )  # fmt: skip


Suite = Literal[
    "demo", "massive", "flores101", "ntrex", "translation", "xnli", "pawsx", "sib200", "xcopa", "xquad",
    "mlqa", "xglue", "language_confusion", "parallel",
]  # fmt: skip
XglueTask = Literal["NER", "POS", "NC", "MLQA", "XNLI", "PAWSX", "QADSM", "WPR", "QAM", "QG", "NTG"]


class Xglue(Settings):
    """What the suite xglue holds."""

    path: Place | None = None
    """The unpacked folder xglue_full_dataset, or its archive; looked for in the data root if not given."""
    tasks: Annotated[tuple[XglueTask, ...], Field(min_length=1), AfterValidator(_once)] = get_args(XglueTask)
    """Which tasks; the overall score is the mean over them."""
    skip_missing: bool = False
    """Leave out tasks and languages that are not there; else they are an error."""


class ParallelSuite(Settings):
    """What the suite parallel holds."""

    path: Place | None = None
    """Parallel JSON lines, as data of type parallel has them, with responses."""


class Translation(Settings):
    """What the suite translation measures."""

    spbleu: bool = True
    """Also BLEU on SentencePiece pieces; its model is fetched by sacrebleu on first use."""


class Evaluate(Settings):
    """What is measured before and after."""

    suites: Annotated[tuple[Suite, ...], Field(min_length=1), AfterValidator(_once)] = ("demo",)
    """Suites, each with a table of its own in the report."""
    likelihood: Annotated[tuple[Suite, ...], AfterValidator(_once)] = ()
    """Suites whose closed tasks are answered by the likeliest option; else the model writes its answer."""
    also: Others = ()
    """Languages that are measured but not taught; they answer through their family or the root."""
    split: Literal["dev", "test"] = "test"
    """Split of every suite that has it; choose settings on dev only. `ablate` and `compare-methods`, which
    are for choosing, take dev if not given."""
    items: Count = 210
    """Items per suite and language, at most."""
    sentences: Count = 300
    """Parallel sentences for retrieval, at most."""
    max_new_tokens: Count = 24
    """Longest answer."""
    batch: Count = 64
    """Prompts per forward."""
    layer: Count | None = None
    """Decoder layer for retrieval; chosen on dev sentences if not given."""
    xglue: Xglue = Xglue()
    """What the suite xglue holds."""
    translation: Translation = Translation()
    """What the suite translation measures."""
    parallel: ParallelSuite = ParallelSuite()
    """What the suite parallel holds."""


class Config(Settings):
    """A whole run."""

    run: Place = Path("runs/demo")
    """The run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of everything drawn at random."""
    model: ModelName = EMBEDDED
    """The base: `demo` (embedded), a local folder, a `.gguf` file, a hub name, or a model that a package
    holds: `gemma-3-270m` (extra `gemma`), `smollm2-135m` (extra `smollm2`)."""
    chat_template: Text | None = None
    """The base's chat template: gemma, chatml, llama3, mistral, plain, or a Jinja file. If not given the
    tokenizer's own, and where it has none the first of these whose control tokens it has."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; auto takes bfloat16 where the processor multiplies it."""
    four_bit: bool = False
    """From stage 2 on the frozen model's layers lie in 4 bits each (NF4); needs bitsandbytes and a GPU."""
    shard: bool = False
    """While adapters learn, each of several processes holds a part of the frozen model's layers, which come
    together as they are read."""
    compile: bool = False
    """While something learns, torch compiles the decoder's layers: half a minute at first, then shorter steps
    and less memory on a GPU."""
    report_to: Annotated[tuple[Tracker, ...], AfterValidator(_once)] = ()
    """Trackers that are shown the curves while something learns: they write to the run's `tracking/` and send
    nothing, unless their own environment variables say otherwise."""
    data_root: Place | None = None
    """Folder of the real data sets; the environment variable ISOGLOSS_DATA if not given."""
    languages: Languages = Languages()
    """Which languages are taught, how they are related, and how much data each may use."""
    data: Data = DemoData()
    """What is learned from: one source, or a list of them."""
    parallel_text: tuple[ParallelText, ...] = ()
    """Pairs without any task, for translation both ways in stage 2."""
    tune: Tune = Tune()
    """Stage 1: English instructions tune the base."""
    distill: Distill = Distill()
    """Stage 2: the carriers learn, by distilling the hierarchy of prompts or without it."""
    evaluate: Evaluate = Evaluate()
    """What is measured before and after."""

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """What is learned from, in the order given."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @model_validator(mode="after")
    def _each_once(self) -> "Config":
        if len(self.sources) == 1 and self.sources[0].weight != 1:
            raise _refusal("data.weight", "must be 1 where there is one source")
        for name, names in (
            ("data", [str(one.path) if isinstance(one, FileData) else one.type for one in self.sources]),
            ("parallel_text", [one.type for one in self.parallel_text]),
        ):
            if twice := [one for one in dict.fromkeys(names) if names.count(one) > 1]:
                raise _refusal(name, f"holds {twice[0]} twice; name each source once")
        return self

    @model_validator(mode="after")
    def _heeded(self) -> "Config":
        levels = self.distill.carrier.levels
        if self.languages.tree == "shared" or not levels["family"] + levels["language"]:
            for name in ("level_dropout", "shrinkage"):
                if getattr(self.distill, name):
                    raise _refusal(f"distill.{name}", "must be 0 where the root has all of a path's rows")
        if any("alignment" in source.use for source in self.parallel_text):
            if not self.distill.hidden:
                raise _refusal(
                    "parallel_text",
                    "must have use: [translation] where distill.hidden is 0: alignment is "
                    "what the hidden-state term does",
                )
            if self.distill.on_policy:
                raise _refusal("parallel_text", "must have use: [translation] with distill.on_policy")
        if self.distill.level_dropout and (
            self.languages.tree == "flat" or not levels["root"] + levels["family"]
        ):
            raise _refusal("distill.level_dropout", "must be 0 where a leaf has all of a path's rows")
        if taught := [code for code in self.evaluate.also if code in self.languages.targets]:
            raise _refusal("evaluate.also", f"names {', '.join(taught)}, which languages.targets does too")
        return self

    @model_validator(mode="after")
    def _apart(self) -> "Config":
        if self.compile:
            if self.shard:
                raise _refusal("shard", "must be false with compile, which wants a layer whole")
            if self.distill.on_policy:
                raise _refusal(
                    "distill.on_policy", "must be 0 with compile: every length drawn has its shape"
                )
        if self.shard:
            if self.four_bit:
                raise _refusal("four_bit", "must be false with shard; each is there for a large model")
            if self.tune.method != "lora":
                raise _refusal("tune.method", "must be lora with shard, which splits weights that are frozen")
            if self.distill.on_policy:
                raise _refusal(
                    "distill.on_policy", "must be 0 with shard: processes draw responses of unlike lengths"
                )
        return self


ROOTED = (
    "massive", "flores101", "ntrex", "translation", "xnli", "pawsx", "sib200", "xcopa", "xquad", "mlqa",
    "xglue", "language_confusion",
)  # fmt: skip
"""Data and suites that lie under the data root."""


def load_config(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    data_root: Path | None = None,
    places: bool = False,
) -> Config:
    """Settings of a YAML file with `a.b=c` overrides; without a file, the embedded default.

    Args:
        path: The file.
        overrides: What --set takes: a dotted name, an equals sign, a YAML value.
        data_root: What --data-root takes; beats the setting of that name.
        places: Also refuse files and folders that are named but not there, and ask the hub about a model
            that is no folder. Without it such a model is taken for a large one where settings follow it.

    Raises:
        ConfigError: All that is wrong, one line each, with file, line and the nearest valid name.
    """
    folder = None if path is None else run_folder_of(path)
    if folder is not None:
        written = _read(folder / "config.yaml")
        if not written.entries:
            raise ConfigError(
                f"{folder / 'config.yaml'} is empty; restore it, or begin in another run folder"
            )
        written.entries["run"] = str(folder)  # whatever it was called when it was made
    else:
        written = _Written("settings") if path is None else _read(path)
    for override in overrides:
        written.override(override)
    if data_root is not None:
        written.entries["data_root"] = str(data_root)
        written.place(("data_root",), f"--data-root {data_root}")
    config = _validate(written)
    if places and (faults := list(_misplaced(config, written))):
        raise ConfigError("\n".join(faults))
    if by_model(written.entries, None)[1] and (places or _is_folder(config.model)):
        config = _validate(written, look_up(config.model))
    return config


def root_of_environment() -> Path | None:
    """The data root that the environment names."""
    given = os.environ.get("ISOGLOSS_DATA")
    return home(Path(given)) if given else None


def _is_folder(model: str) -> bool:
    return model in PACKAGED or (Path(model) / "config.json").is_file()


def run_folder_of(path: Path) -> Path | None:
    """The run whose settings a path names: its folder, or the `config.yaml` of a run that has begun.

    A run is what lies in its folder, copied or renamed; None for any other file.
    """
    if path.is_dir():
        return path if (path / "config.yaml").is_file() else None
    return path.parent if path.name == "config.yaml" and (path.parent / "ledger.json").is_file() else None


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """The settings with `a.b=c` overrides.

    Raises:
        ConfigError: As `load_config`.
    """
    written = _Written("settings")
    written.entries = config.model_dump(mode="json")
    for override in overrides:
        written.override(override)
    return _validate(written)


def for_choosing(config: Config) -> Config:
    """The settings measured on dev, unless a split was asked for by name: test is not for choosing."""
    if "split" in config.evaluate.model_fields_set:
        return config
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": "dev"})})


OWN = (
    "data", "data_root", "parallel_text", "languages.items", "languages.amounts", "distill.responses",
    "distill.teacher", "distill.on_policy", "distill.sample_tokens", "distill.gradient_checkpointing",
    "distill.level_dropout", "distill.shrinkage", "distill.lr_b_ratio",
    "distill.divergence", "distill.temperature", "distill.signal", "distill.top_k", "distill.cache",
    "distill.checks", "distill.kl", "distill.hear", "distill.ce", "distill.hidden", "distill.contrast",
    "distill.fade", "distill.layer", "distill.max_prompt", "distill.balance",
    "distill.epochs", "distill.batch", "distill.accumulate", "distill.lr",
)  # fmt: skip
"""Settings that a language which joins a finished run may have of its own."""
GONE = {
    f"languages.{name}": "was removed: resource classes now come from the registry (`isogloss languages`); "
    "languages.amounts gives single languages another amount"
    for name in ("high", "middle")
}
"""Settings of earlier releases, and what to do instead."""


def refuse_shared(overrides: Iterable[str]) -> None:
    """Refuse to change, for a language that joins, what the run's other languages were trained with.

    Raises:
        ConfigError: A setting is not among `OWN`.
    """
    for override in overrides:
        name = override.partition("=")[0].strip()
        if not any(name == one or name.startswith(f"{one}.") for one in OWN):
            raise ConfigError(
                f"--set {override}: {name} is the whole run's; a language that joins may have its own "
                f"{', '.join(OWN)}"
            )


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; `load_config` reads back the same settings."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def parse_config(text: str) -> Config:
    """What `dump_config` has written; a setting that there was not yet has its default."""
    return Config.model_validate_json(json.dumps(yaml.load(text, Loader=_Loader)))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is a text (and Norwegian), `1e-3` a number; aliases are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "an alias; write its value out", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for something else."""


_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", _NUMBER, list("-+0123456789.")),
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


class _Written:
    """Entries as they were written, and where: `run.yaml:3` or `--set seed=1`."""

    def __init__(self, where: str):
        self.where = where
        self.entries: dict[str, Any] = {}
        self.places: dict[tuple, str] = {}
        self.faults: list[tuple[tuple, str]] = []

    def place(self, path: tuple, label: str) -> None:
        """Whatever was below the path is gone; an order of writing is kept."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = label

    def at(self, path: tuple) -> str:
        """Where the path, else what it holds, else what holds it, was written."""
        known = self._nearest(path)
        return self.where if known is None else self.places[known]

    def order(self, path: tuple) -> int:
        known = self._nearest(path)
        return -1 if known is None else list(self.places).index(known)

    def _nearest(self, path: tuple) -> tuple | None:
        while path:
            if path in self.places:
                return path
            if below := [known for known in self.places if known[: len(path)] == path]:
                return below[-1]
            path = path[:-1]
        return None

    def override(self, override: str) -> None:
        """Put a `--set` in.

        Raises:
            ConfigError: It is not written as name=value.
        """
        label = f"--set {override}"
        name, equals, value = override.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f"{label}: write it as name=value, for example --set distill.lr=0.001")
        entries = self.entries
        for depth, parent in enumerate(path[:-1], start=1):
            below = entries.get(parent)
            if below is None:
                below = entries[parent] = {}
            if not isinstance(below, dict):
                above = ".".join(path[:depth])
                raise ConfigError(f"{label}: {above} holds no settings; write --set {above}=value")
            entries = below
        try:
            entries[path[-1]] = yaml.load(value, _Loader)  # a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"{label}: the value is not YAML ({_problem(error)}); quote it") from None
        self.place(path, label)


def _read(path: Path) -> _Written:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder without config.yaml; name a YAML file of settings")
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "name a YAML file of settings"
        raise ConfigError(f"{path} does not exist; {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8") from None
    written = _Written(str(path))
    try:
        node = yaml.compose(text, _Loader)
        entries = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{at}: not YAML ({_problem(error)}); write settings as name: value") from None
    if entries is None:
        entries = {}
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: not settings; write them as name: value")
    written.entries = entries
    _note_lines(node, (), written)
    return written


def _problem(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())


def _note_lines(node: yaml.Node, path: tuple, written: _Written) -> None:
    pairs: list[tuple[Any, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(number, value, value) for number, value in enumerate(node.value)]
    for part, begins, value in pairs:
        here, label = (*path, part), f"{written.where}:{begins.start_mark.line + 1}"
        if here in written.places:
            text = f"{label}: {_dotted(here)} was set before, at {written.places[here]}; keep one of them"
            written.faults.append((here, text))
        written.places[here] = label
        _note_lines(value, here, written)


def _validate(written: _Written, facts: Facts | None = None) -> Config:
    """The settings, those that follow the model filled in; without facts, as for a large one."""
    entries, _ = by_model(written.entries, facts)
    if isinstance(entries.get("data"), dict):
        entries["data"].setdefault("type", "demo")
    carrier = entries["distill"].get("carrier") if isinstance(entries.get("distill"), dict) else None
    if isinstance(carrier, dict):
        carrier.setdefault("type", "lora")
    faults, config = written.faults, None
    try:
        # In JSON mode strict takes a text for a path and a list for a tuple, and nothing else for another.
        config = Config.model_validate_json(json.dumps(entries, default=str))
    except ValidationError as error:
        faults = faults + [_fault(fault, written) for fault in error.errors() if not _follows(fault)]
    if config is None or faults:
        ordered = sorted(faults, key=lambda fault: written.order(fault[0]))
        raise ConfigError("\n".join(dict.fromkeys(text for _, text in ordered)))
    return config


def _follows(fault: Any) -> bool:
    """A list of which no entry is right also counts as too short: that is not told."""
    return fault["type"] == "too_short" and len(fault["input"]) > 0


def _fault(fault: Any, written: _Written) -> tuple[tuple, str]:
    """The path and the line of one of pydantic's errors."""
    kind, context = fault["type"], fault.get("ctx", {})
    path, holder, hint = _walk(tuple(part for part in fault["loc"] if part not in (_ONE, _SEVERAL)))
    if kind == "union_tag_invalid":
        path, hint = (*path, "type"), Literal[tuple(context["expected_tags"].replace("'", "").split(", "))]
        fault = {**fault, "input": fault["input"]["type"]}
    elif kind == "refusal":
        path = (*path, *context["name"].split("."))
    at, name = written.at(path), _dotted(path)
    if kind == "extra_forbidden" and (why := GONE.get(_dotted(path))):
        return path, f"{at}: {name} {why}"
    if kind == "extra_forbidden":
        return path, f"{at}: {name} is not a setting{_instead(path, holder)}"
    if kind == "value_error":
        return path, f"{at}: {name}: {context['error']}"
    if kind == "refusal":
        return path, f"{at}: {name} {context['message']}"
    if kind == "missing":
        return path, f"{at}: {name} is missing; it must be {_describe(hint)}"
    given = json.dumps(fault["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 60 else given[:59] + "…"
    holds, must = ("holds", "each must be") if isinstance(path[-1], int) else ("is", "it must be")
    return path, f"{at}: {name} {holds} {given}; {must} {_describe(hint)}{_mend(fault['input'], hint)}"


def _walk(loc: tuple) -> tuple[tuple, type[Settings] | None, Any]:
    """Pydantic's path as the user wrote it, the settings that hold its end, and what its end may be.

    Pydantic puts a union's tag into its path (data.massive.foo): it picks the class here, and is not kept.
    """
    path: list = []
    holder: type[Settings] | None = None
    hint: Any = Config
    parts = iter(loc)
    for part in parts:
        holder = hint if isinstance(hint, type) and issubclass(hint, Settings) else None
        path.append(part)
        if holder is not None:
            hint = _hints(holder).get(part)
        else:
            kinds = [a for a in get_args(_bare(hint)) if a is not Ellipsis]
            # Of a mapping the last kind is the values'; a fault in a key is its own part.
            hint = kinds[-1] if kinds else None
        options = _options(hint)
        if len(options) > 1 and (tag := next(parts, None)) is not None:
            if isinstance(tag, int):  # of a list of such settings
                path.append(tag)
                if (tag := next(parts, None)) is None:
                    break
            hint = next(o for o in options if o.model_fields["type"].default == tag)
        elif options:
            hint = options[0] if len(options) == 1 else hint
    return tuple(path), holder, hint


def _hints(settings: type[Settings]) -> dict[str, Any]:
    return {
        name: Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[misc]
        for name, field in settings.model_fields.items()
    }


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _options(hint: Any) -> list[type[Settings]]:
    """The classes that a hint chooses from; a list of what is chosen from counts as that."""
    hint = _bare(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return list(dict.fromkeys(option for one in get_args(hint) for option in _options(one)))
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        several = _options(get_args(hint)[0])
        return several if len(several) > 1 else []
    return [hint] if isinstance(hint, type) and issubclass(hint, Settings) else []


def _describe(hint: Any) -> str:
    """What a value must be, in words."""
    bare, limits = _bare(hint), {}
    for note in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if getattr(note, "func", None) is _code:
            return "a language code such as sw"
        for limit in getattr(note, "metadata", None) or [note]:
            limits |= {
                k: v for k in ("ge", "gt", "le", "lt", "min_length") if (v := _limit(limit, k)) is not None
            }
    if get_origin(bare) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(bare) if kind is not types.NoneType]
        return "settings: a type and what belongs to it" if len(kinds) > 1 else _describe(kinds[0])
    if get_origin(bare) is Literal:
        return _or([str(option) for option in get_args(bare)])
    if get_origin(bare) is tuple:
        return "a list with at least one entry" if "min_length" in limits else "a list"
    if get_origin(bare) is dict:
        return "names with their values, name: value"
    if isinstance(bare, type) and issubclass(bare, Settings):
        return f"settings: {', '.join(bare.model_fields)}"
    if bare in (int, float):
        return ("a whole number" if bare is int else "a number") + _range(limits)
    if bare is str:
        return "a text, not empty" if "min_length" in limits else "a text"
    return "true or false" if bare is bool else "a path"


def _limit(note: Any, name: str) -> Any:
    return getattr(note, name, None)


def _range(limits: dict[str, Any]) -> str:
    if "ge" in limits and ("le" in limits or "lt" in limits):
        return f" between {limits['ge']} and {limits['le'] if 'le' in limits else limits['lt'] - 1}"
    if "gt" in limits and "le" in limits:
        return f" above {limits['gt']} and at most {limits['le']}"
    return (
        f" of at least {limits['ge']}"
        if "ge" in limits
        else f" above {limits['gt']}"
        if "gt" in limits
        else ""
    )


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _mend(given: Any, hint: Any) -> str:
    """The way out, where the mistake is a common one."""
    bare = _bare(hint)
    if get_origin(bare) is Literal and isinstance(given, str):
        near = difflib.get_close_matches(given, map(str, get_args(bare)), n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if bare in (int, float) and isinstance(given, str) and re.fullmatch(_NUMBER, given):
        return ", without quotes"
    if get_origin(bare) is tuple and isinstance(given, str | int):
        return f", for example [{given}]"
    if bare in (str, Path) and isinstance(given, int | float):
        return "; put it in quotes"
    return ""


def _instead(path: tuple, holder: type[Settings] | None) -> str:
    """What to write for an unknown name: the nearest there, the same name elsewhere, else all there are."""
    if holder is None:
        return ""
    typed = holder.model_fields.get("type")
    of = next((part for part in reversed(path[:-1]) if isinstance(part, str)), "")
    kind = f" of {of} type {typed.default}" if typed and isinstance(typed.default, str) else ""
    known, word = list(holder.model_fields), str(path[-1])
    if near := difflib.get_close_matches(word, known, n=1):
        return f"{kind}; did you mean {near[0]}?"
    names = (name for name in _all_names(Config, "") if name != _dotted(path))
    if elsewhere := [name for name in names if name.rpartition(".")[2] == word]:
        return f"{kind}; did you mean {_or(elsewhere)}?"
    return f"{kind}; there are {', '.join(known)}"


def _all_names(settings: type[Settings], prefix: str) -> Iterator[str]:
    for name, hint in _hints(settings).items():
        yield prefix + name
        for option in _options(hint)[:1]:
            yield from _all_names(option, f"{prefix}{name}.")


def _dotted(path: tuple) -> str:
    # pydantic's last part where it is a mapping's key that is wrong
    return ".".join(str(part) for part in path if not isinstance(part, int) and part != "[key]")


def _misplaced(config: Config, written: _Written) -> Iterator[str]:
    """Files and folders that are named and not there."""

    def fault(name: str, text: str) -> str:
        return f"{written.at(tuple(name.split('.')))}: {name} {text}"

    if config.run.exists() and not config.run.is_dir():
        yield fault("run", f"is {config.run}, which is a file; name a folder")
    folder = Path(config.model)
    if reason := unavailable(config.model):
        yield fault("model", f"is {config.model}; {reason.removeprefix(config.model + ' ')}")
    elif config.model.endswith(SUFFIX):
        pass
    elif config.model.startswith((".", "/")) and not folder.is_dir():
        yield fault("model", f"is {config.model}; there is no such folder")
    elif folder.is_dir() and config.model != EMBEDDED and not (folder / "config.json").is_file():
        yield fault("model", f"is {config.model}; it holds no config.json, which save_pretrained writes")
    for source in config.sources:
        if isinstance(source, FileData) and not on_hub(source.path) and not source.path.exists():
            yield fault("data.path", f"is {source.path}; there is no such file")
    for code in config.languages.amounts:
        if code not in config.languages.targets:
            yield fault("languages.amounts", f"names {code}, which is not among languages.targets")
    if isinstance(config.languages.tree, Path) and not config.languages.tree.is_file():
        shapes = "families, learned, random, flat nor shared"
        yield fault("languages.tree", f"is {config.languages.tree}; it is no file, and neither {shapes}")
    teacher = config.distill.teacher
    path = teacher.path if isinstance(teacher, ModelTeacher) else ""
    if path.startswith((".", "/")) and not _is_folder(path):
        yield fault("distill.teacher.path", f"is {path}; no model lies there")
    if isinstance(teacher, ServerTeacher) and teacher.key_env and not os.environ.get(teacher.key_env):
        yield fault("distill.teacher.key_env", f"is {teacher.key_env}; that environment variable is not set")
    if config.distill.texts is not None and not config.distill.texts.is_file():
        yield fault("distill.texts", f"is {config.distill.texts}; there is no such file")
    if config.distill.cache is not None and config.distill.cache.is_file():
        yield fault("distill.cache", f"is {config.distill.cache}, which is a file; name a folder")
    for name in ("xglue", "parallel"):
        if (path := getattr(config.evaluate, name).path) is not None and not path.exists():
            yield fault(f"evaluate.{name}.path", f"is {path}; there is no such file or folder")
    if "parallel" in config.evaluate.suites and config.evaluate.parallel.path is None:
        yield fault("evaluate.suites", "holds parallel, which needs a file; set evaluate.parallel.path")
    root = config.data_root or root_of_environment()
    if root is not None and not root.is_dir():
        if config.data_root is not None:
            yield fault("data_root", f"is {root}; there is no such folder")
        else:
            yield f"ISOGLOSS_DATA is {root}; there is no such folder"
    if root is None:
        way = "needs a data root; set data_root, --data-root or ISOGLOSS_DATA"
        for source in config.sources:
            if source.type in ROOTED:
                yield fault("data.type", f"{source.type} {way}")
        if config.parallel_text:
            yield fault("parallel_text", way)
        for name in config.evaluate.suites:
            if name in ROOTED and not (name == "xglue" and config.evaluate.xglue.path):
                yield fault("evaluate.suites", f"holds {name}, which {way}")
