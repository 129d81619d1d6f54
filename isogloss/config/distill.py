"""Settings of stage 2: adapters, teacher and losses."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from isogloss.config.base import (
    Count,
    Fraction,
    ModelName,
    Place,
    Positive,
    Rank,
    Settings,
    Text,
    Weight,
    once,
    refusal,
    whole_batches,
    without_effect,
)


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
            raise refusal("root", "must be above 0 where family and language are 0 too")
        return self


class LoraCarrier(Settings):
    """Low-rank adapters of a model's linear layers."""

    type: Literal["lora"] = "lora"
    """Which kind of carrier: lora, prefix or embedding."""
    ranks: Ranks = Ranks()
    """Adapter rows per node."""
    scaling: Positive = 2.0
    """What the adapter's output is multiplied by (alpha / r)."""
    targets: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(once)] = (
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
            raise refusal("root", "must be above 0 where family and language are 0 too")
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
        return without_effect(
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
    teacher_reads: Annotated[tuple[Literal["texts", "twin", "answer"], ...], AfterValidator(once)] = (
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
    _whole_batches = model_validator(mode="after")(whole_batches)

    @model_validator(mode="after")
    def _some_loss(self) -> "Distill":
        if not self.kl + self.ce + self.hidden:
            raise refusal("kl", "must be above 0 where ce and hidden are 0 too")
        return self

    @model_validator(mode="after")
    def _exact(self) -> "Distill":
        if self.form[0] == "top_k" and self.temperature != 1:
            name = f"teacher.type is {self.teacher.type}" if self.scored_elsewhere else "signal is top_k"
            raise refusal("temperature", f"must be 1 where {name}; with hidden it may be another")
        return self

    @model_validator(mode="after")
    def _kept_positions(self) -> "Distill":
        if self.gradient_checkpointing and self.carrier.type == "prefix":
            raise refusal(
                "gradient_checkpointing",
                "must be false with carrier.type prefix: layers that are computed again read no past keys "
                "and values; take lora or embedding",
            )
        for name, usual in (("shrinkage", 0.0), ("lr_b_ratio", 1.0)):
            if self.carrier.type != "lora" and getattr(self, name) != usual:
                raise refusal(
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
            raise refusal(
                "kl", f"must be above 0 where the teacher is a {self.teacher.type} that scores tokens"
            )
        if self.on_policy and not self.kl:
            raise refusal("kl", "must be above 0 where on_policy is")
        if self.teacher_view == "english":
            reasons = {
                "where kl is 0, which scores nothing": not self.kl,
                f"where teacher.type is {self.teacher.type}": self.teacher.type != "self",
                f"with carrier.type {self.carrier.type}": self.carrier.type != "lora",
                "where on_policy is above 0": bool(self.on_policy),
            }
            for why in (why for why, holds in reasons.items() if holds):
                raise refusal("teacher_view", f"must be prompt {why}")
        if self.on_policy and self.teacher.type != "self":
            raise refusal(
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
        return without_effect(
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
