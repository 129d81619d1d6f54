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
    Optimisation,
    Place,
    Positive,
    Rank,
    Settings,
    Text,
    Weight,
    once,
    refusal,
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


class Adapter(Settings):
    """Low-rank adapters (LoRA) of a model's linear layers."""

    ranks: Ranks = Ranks()
    """Adapter rows per node."""
    scaling: Positive = 2.0
    """What the adapter's output is multiplied by (alpha / r)."""
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(once)] = (
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


KL_ONLY = ("texts", "require_texts", "teacher_reads", "divergence", "temperature")
SIMILARITY_ONLY = ("similarity_temperature", "similarity_decay", "similarity_layer")
"""Settings of stage 2 that one term of the loss alone heeds; the first three of the former are heeded by a
teacher that writes answers too."""


class Distill(Optimisation):
    """Stage 2: adapters learn; where `kl_weight` is above 0, the prompts are distilled into them."""

    adapter: Adapter = Adapter()
    """What a node's text is distilled into."""
    texts: Place | None = None
    """Node texts; the package's own if not given."""
    require_texts: bool = False
    """Refuse a tree with a node that has no text; else it is silent."""
    teacher: Teacher = SelfTeacher()
    """Whose reading of the privileged prompt is learned: the frozen model's own, another's, or a server's."""
    teacher_view: Literal["english", "prompt"] = "prompt"
    """`prompt`: always the privileged prompt. `english`: the English twin alone where the answer is the same
    in every language or one of a closed set, otherwise the privileged prompt."""
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
    signal: Literal["hidden", "top_k"] = "hidden"
    """What is kept of the teacher: its last hidden states, which are exact, or its likeliest tokens with one
    bucket for the rest."""
    top_k: Count = 32
    """Tokens kept, where the signal is top_k; 4 bytes each per response token."""
    cache: Place | None = None
    """Folder in which the teacher's signals are kept; `cache` in the run's folder if not given."""
    checks: bool = True
    """Check before training that teacher and student are aligned, and tell their divergence per language."""
    kl_weight: Weight = 0.0
    """Weight of the divergence per response token; 0 disables teacher scoring: no prompt is distilled.
    If not given, 0 for the embedded model, which does better without (docs/log.md), and 1 for every other."""
    ce_weight: Weight = 1.0
    """Weight of cross-entropy per response token."""
    similarity_weight: Weight = 4.0
    """Weight of the similarity loss, between hidden states of a row and its English twin, per row."""
    similarity_temperature: Positive | None = None
    """Temperature of the similarity loss, which divides its cosines; if not given, such that a twin is
    likened to ten on average."""
    similarity_decay: Fraction = 0.7
    """Share of the steps over which similarity_weight falls to 0; 0 keeps it."""
    similarity_layer: Count | None = None
    """Decoder layer that the similarity loss reads; by the model if not given."""
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of rows that replay English of stage 1 through the root alone, with KL to the reference model,
    whatever the other weights."""
    max_new_tokens: Count = 64
    """Longest English answer that the model writes, in tokens. For one that does not end within it the data's
    English response is taken; where there is none, the item is left out."""
    sampling_temperature: Positive = 2.0
    """Languages are drawn with p ∝ n^(1/T) of their n rows: 1 in proportion to data, larger more evenly."""
    epochs: Positive = 4.5
    """Passes over the parallel items of all languages together, English aside; by the model if not given."""
    learning_rate: Positive = 3e-3
    """Peak learning rate; by the model if not given."""
    gradient_checkpointing: bool = False
    """Compute each layer again in backward: less memory, more time."""
    max_prompt_length: Count = 512
    """Longest prompt in tokens, the teacher's included; longer ones are refused."""

    @model_validator(mode="after")
    def _some_loss(self) -> "Distill":
        if not self.kl_weight + self.ce_weight + self.similarity_weight:
            raise refusal("kl_weight", "must be above 0 where ce_weight and similarity_weight are 0 too")
        return self

    @model_validator(mode="after")
    def _exact(self) -> "Distill":
        if self.form[0] == "top_k" and self.temperature != 1:
            name = f"teacher.type is {self.teacher.type}" if self.scored_elsewhere else "signal is top_k"
            raise refusal("temperature", f"must be 1 where {name}; with hidden it may be another")
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
        return bool(self.kl_weight) and not self.scored_elsewhere

    @property
    def form(self) -> tuple[Literal["hidden", "top_k"], int]:
        """What is kept of all rows, and k: another teacher's scores are its likeliest tokens."""
        if self.scored_elsewhere and not isinstance(self.teacher, SelfTeacher):
            return "top_k", self.teacher.top_k
        return self.signal, self.top_k

    @model_validator(mode="after")
    def _teacher_is_heard(self) -> "Distill":
        if self.scored_elsewhere and not self.kl_weight:
            raise refusal(
                "kl_weight", f"must be above 0 where the teacher is a {self.teacher.type} that scores tokens"
            )
        if self.teacher_view == "english":
            reasons = {
                "where kl_weight is 0, which scores nothing": not self.kl_weight,
                f"where teacher.type is {self.teacher.type}": self.teacher.type != "self",
            }
            for why in (why for why, holds in reasons.items() if holds):
                raise refusal("teacher_view", f"must be prompt {why}")
        return self

    @property
    def prompts_are_read(self) -> bool:
        """Whether a teacher reads the privileged prompts: to be learned from token by token, or to answer."""
        return bool(self.kl_weight) or (
            isinstance(self.teacher, ModelTeacher) and self.teacher.level == "sequence"
        )

    @model_validator(mode="after")
    def _heeded(self) -> "Distill":
        mute = "with kl_weight 0, where no prompt is distilled; set distill.kl_weight above 0"
        retained = "with kl_weight and replay_fraction 0, where the teacher says nothing"
        kept = self.form[0] == "top_k" and not self.scored_elsewhere
        return without_effect(
            self,
            (not self.prompts_are_read, ["teacher_reads", "texts", "require_texts"], mute),
            (not self.kl_weight, ["divergence", "temperature"], mute),
            (
                "texts" not in self.teacher_reads,
                ["texts", "require_texts"],
                "where teacher_reads has no texts",
            ),
            (self.scored_elsewhere, ["signal"], "on what another teacher scores, which is its top_k"),
            (not self.kl_weight and not self.replay_fraction, ["signal", "top_k"], retained),
            (self.scored_elsewhere, ["top_k"], "on what another teacher scores; set teacher.top_k"),
            (not kept, ["top_k"], f"where signal is {self.signal}"),
            (not self.similarity_weight, SIMILARITY_ONLY, "with similarity_weight 0"),
        )
