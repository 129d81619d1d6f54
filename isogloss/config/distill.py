"""Settings of stage 2: adapters, teacher and losses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

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
    """LoRA rank per node, largest in the root: a language with few items cannot train a large rank alone.
    Ranks that are not given follow the model."""

    root: Rank = 12
    """LoRA rank of the root, which all languages share. Follows the model if not given."""
    family: Rank = 2
    """LoRA rank of each language family's node. Follows the model if not given."""
    language: Rank = 2
    """LoRA rank of each language's own node. Follows the model if not given."""

    @model_validator(mode="after")
    def _some(self) -> "Ranks":
        if not self.root + self.family + self.language:
            raise refusal("root", "must be above 0 if family and language are 0")
        return self


class Adapter(Settings):
    """LoRA adapters on the model's linear layers."""

    ranks: Ranks = Ranks()
    """LoRA rank per node."""
    scaling: Positive = 2.0
    """LoRA scaling factor of the adapter's output (alpha / r)."""
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(once)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the linear layers that get adapters."""
    layers: Count | None = None
    """Number of decoder layers with adapters, from the lowest up; two thirds of all if not given. Higher
    layers stay those of the reference model in every language."""

    @property
    def levels(self) -> dict[str, int]:
        """LoRA rank per node, by level."""
        return self.ranks.model_dump()


class SelfTeacher(Settings):
    """The frozen model itself, given the privileged prompt."""

    type: Literal["self"] = "self"
    """Kind of teacher: self, model or server."""


class ModelTeacher(Settings):
    """Another local model, given the privileged prompt in its own chat template."""

    type: Literal["model"] = "model"
    """Another local model."""
    path: ModelName
    """The teacher's folder or Hub name."""
    level: Literal["token", "sequence"] = "token"
    """`token`: the teacher scores each response token. `sequence`: it writes the responses to train on. With
    `token` and a tokenizer unlike the student's, only positions where both tokenizers agree are scored."""
    top_k: Count = 32
    """Number of likeliest tokens kept per position; all others share one bucket."""
    max_new_tokens: Count = 128
    """Maximum length of the teacher's responses in tokens, with level sequence."""

    @model_validator(mode="after")
    def _heeded(self) -> "ModelTeacher":
        return without_effect(
            self,
            (self.level == "token", ["max_new_tokens"], "with level token, which writes no responses"),
            (self.level == "sequence", ["top_k"], "with level sequence, which scores no tokens"),
        )


class Endpoint(Settings):
    """An OpenAI-compatible endpoint, and how requests are made."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """Base URL of the endpoint, up to and including /v1, without a key."""
    model: Text
    """Name of the model at the endpoint."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that contains the API key; the key itself is never saved."""
    concurrency: Count = 8
    """Maximum number of concurrent requests."""
    rate: Positive | None = None
    """Maximum number of requests per second; no limit if not given."""
    timeout: Positive = 120.0
    """Seconds without any data after which a request is retried."""
    attempts: Count = 8
    """Maximum number of attempts per request; when all fail, the command ends."""
    backoff: Positive = 1.0
    """Maximum wait before the first retry, in seconds; it doubles with every attempt."""


class ServerTeacher(Endpoint):
    """A model behind an OpenAI-compatible endpoint that returns prompt log-probabilities, such as vLLM."""

    type: Literal["server"] = "server"
    """A served model; it must have the student's tokenizer."""
    top_k: Count = 32
    """Number of likeliest tokens kept per position. vLLM returns at most 20 unless started with a
    higher --max-logprobs."""


Teacher = Annotated[SelfTeacher | ModelTeacher | ServerTeacher, Field(discriminator="type")]


KL_ONLY = ("texts", "require_texts", "teacher_reads", "divergence", "temperature")
SIMILARITY_ONLY = ("similarity_temperature", "similarity_decay", "similarity_layer", "similarity_inputs")
"""Stage-2 settings that affect only one term of the loss. The first three of `KL_ONLY` also affect a teacher
that writes responses."""


class Distill(Optimisation):
    """Stage 2: train the adapters; if `kl_weight` is above 0, prompts are distilled into them."""

    adapter: Adapter = Adapter()
    """The LoRA adapters to train."""
    texts: Place | None = None
    """YAML file with the node texts of the teacher's prompt; the package's own texts if not given."""
    require_texts: bool = False
    """Raise an error if a node of the tree has no text. Otherwise such a node adds nothing to the prompt."""
    teacher: Teacher = SelfTeacher()
    """The teacher, which reads a prompt with additional context, the privileged prompt (`teacher_reads`): the
    frozen model itself (self), another local model (model) or a served model (server)."""
    teacher_view: Literal["english", "prompt"] = "prompt"
    """Prompt of the teacher. `prompt`: always the privileged prompt. `english`: the English twin (the English
    version of the instruction) alone where the answer is the same in every language or, if the teacher is the
    model itself, one of a closed set; otherwise the privileged prompt. Follows the model if not given."""
    teacher_reads: Annotated[tuple[Literal["texts", "twin", "answer"], ...], AfterValidator(once)] = (
        "texts",
        "twin",
        "answer",
    )
    """Contents of the privileged prompt, which come before the instruction: node texts (`texts`), the English
    twin (`twin`) and the English answer (`answer`). Follows the model if not given."""
    responses: Literal["reference", "teacher"] = "reference"
    """Responses to train on. `reference`: the dataset's own. `teacher`: the reference model's English
    answers; in closed tasks, the option that the answer names, worded in the language."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """Divergence between teacher and student on response tokens: `forward` KL, `reverse` KL or
    `jensen_shannon`."""
    temperature: Positive = 1.0
    """Softmax temperature of the divergence. If only the top-k tokens are kept, a value other than 1 adds the
    divergence among them at that temperature to the one at 1. Follows the model if not given."""
    signal: Literal["hidden", "top_k"] = "hidden"
    """What is cached of the teacher's output. `hidden`: the last hidden states, which give the exact
    divergence. `top_k`: the likeliest tokens and one bucket for the rest. Follows the model if not given."""
    top_k: Count = 32
    """Number of tokens kept with signal top_k; each takes 4 bytes per response token."""
    cache: Place | None = None
    """Folder for cached teacher outputs; `cache` in the run folder if not given."""
    checks: bool = True
    """Run self-checks: teacher and student are aligned before training, and the first step changes only the
    nodes on the paths read. Also print the divergence from the teacher per language."""
    kl_weight: Weight = 0.0
    """Weight of the divergence from the teacher (KL), per response token. 0 disables teacher scoring: no
    prompt is distilled. If not given, 0 for the embedded model, which does better without (docs/log.md), and
    1 for every other."""
    ce_weight: Weight = 1.0
    """Weight of the cross-entropy loss, per response token."""
    similarity_weight: Weight = 4.0
    """Weight of the hidden-state term, per row: similarity distillation between the hidden states of a row
    and its English twin. 0 disables it. Follows the model if not given."""
    similarity_temperature: Positive | None = None
    """Softmax temperature of the cosine similarities in the hidden-state term. If not given, it is chosen so
    that the target spreads over ten English twins on average."""
    similarity_decay: Fraction = 0.7
    """Share of the steps over which similarity_weight decays linearly to 0; 0 keeps it constant. Follows
    similarity_inputs if not given."""
    similarity_layer: Count | None = None
    """Decoder layer of the hidden-state term. If not given, two thirds of the way up for the embedded model
    and two fifths for every other."""
    similarity_inputs: bool = False
    """Read the inputs of instructions (an utterance, or a premise and a hypothesis) once more for the
    hidden-state term, as sentences without the task's wording. Follows the model and the data if not
    given."""
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of rows that replay English items of stage 1. They use only the root's adapter, with KL to the
    reference model, whatever the other weights are."""
    max_new_tokens: Count = 64
    """Maximum length in tokens of the English answers that the reference model generates. If an answer is
    truncated, the dataset's English response is used instead; if there is none, the item is left out."""
    sampling_temperature: Positive = 2.0
    """Temperature T of sampling over languages: a language with n rows has p ∝ n^(1/T). 1 is proportional to
    the data; larger values are more even."""
    epochs: Positive = 3.5
    """Epochs over the parallel items of all languages, not counting English replay. Follows the model if not
    given."""
    learning_rate: Positive = 3e-3
    """Peak learning rate. Follows the model if not given."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    max_prompt_length: Count = 512
    """Maximum prompt length in tokens, for student and teacher; longer prompts raise an error."""

    @model_validator(mode="after")
    def _some_loss(self) -> "Distill":
        if not self.kl_weight + self.ce_weight + self.similarity_weight:
            raise refusal("kl_weight", "must be above 0 if ce_weight and similarity_weight are 0")
        return self

    @property
    def answered_elsewhere(self) -> bool:
        """Whether the teacher is another model that writes the responses."""
        return isinstance(self.teacher, ModelTeacher) and self.teacher.level == "sequence"

    @property
    def scored_elsewhere(self) -> bool:
        """Whether the teacher is another model that scores each response token."""
        return not (isinstance(self.teacher, SelfTeacher) or self.answered_elsewhere)

    @property
    def hears_itself(self) -> bool:
        """Whether the frozen model itself must read the privileged prompts before training."""
        return bool(self.kl_weight) and not self.scored_elsewhere

    @property
    def form(self) -> tuple[Literal["hidden", "top_k"], int]:
        """The kind of signal kept for all rows, and k; another model's scores are always its top-k tokens."""
        if self.scored_elsewhere and not isinstance(self.teacher, SelfTeacher):
            return "top_k", self.teacher.top_k
        return self.signal, self.top_k

    @model_validator(mode="after")
    def _teacher_is_heard(self) -> "Distill":
        if self.scored_elsewhere and not self.kl_weight:
            raise refusal(
                "kl_weight", f"must be above 0 if the teacher is a {self.teacher.type} that scores tokens"
            )
        if self.teacher_view == "english" and not self.kl_weight:
            raise refusal("teacher_view", "must be prompt if kl_weight is 0, as there is no teacher scoring")
        if self.teacher_view == "english" and self.answered_elsewhere:
            raise refusal("teacher_view", "must be prompt if the teacher writes the responses")
        return self

    @property
    def prompts_are_read(self) -> bool:
        """Whether a teacher reads the privileged prompts, to score tokens or to write responses."""
        return bool(self.kl_weight) or self.answered_elsewhere

    @model_validator(mode="after")
    def _heeded(self) -> "Distill":
        mute = "with kl_weight 0, as no prompt is distilled; set distill.kl_weight above 0"
        unread = "unless distill.teacher_reads includes texts"
        retained = "with kl_weight and replay_fraction 0, as no teacher output is used"
        kept = self.form[0] == "top_k" and not self.scored_elsewhere
        return without_effect(
            self,
            (not self.prompts_are_read, ["texts", "teacher_reads", "require_texts"], mute),
            (not self.kl_weight, ["divergence", "temperature"], mute),
            ("texts" not in self.teacher_reads, ["texts", "require_texts"], unread),
            (self.scored_elsewhere, ["signal"], "if another model scores the tokens (always as top_k)"),
            (not self.kl_weight and not self.replay_fraction, ["signal", "top_k"], retained),
            (self.scored_elsewhere, ["top_k"], "if another model scores the tokens; set teacher.top_k"),
            (not kept, ["top_k"], f"with signal {self.signal}"),
            (not self.similarity_weight, SIMILARITY_ONLY, "with similarity_weight 0"),
        )
