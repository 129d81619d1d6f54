"""The settings of a whole run."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from isogloss.bases import EMBEDDED
from isogloss.config.base import ModelName, Place, Settings, Text, once, refusal
from isogloss.config.data import AnySource, Data, DemoData, FileData, ParallelText
from isogloss.config.distill import Distill
from isogloss.config.evaluate import Evaluate, Suite
from isogloss.config.languages import Languages
from isogloss.config.tune import Tune

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


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
    """While something learns, torch compiles the decoder's layers: half a minute at first on a GPU, two on a
    processor, then shorter steps and less memory."""
    report_to: Annotated[tuple[Tracker, ...], AfterValidator(once)] = ()
    """Trackers that are shown the curves while something learns: they write to the run's `tracking/` and send
    nothing, unless their own environment variables say otherwise."""
    data_root: Place | None = None
    """Folder of the real data sets; the environment variable ISOGLOSS_DATA if not given."""
    languages: Languages = Languages()
    """Which languages are taught, how they are related, and how much data each may use."""
    data: Data = DemoData()
    """What is learned from: one source, or a list of them."""
    parallel_text: tuple[ParallelText, ...] = ()
    """Sentence pairs without any task, for stage 2: to translate both ways, and for the hidden-state term."""
    tune: Tune = Tune()
    """Stage 1: English instructions tune the base."""
    distill: Distill = Distill()
    """Stage 2: the adapters learn, by distilling the hierarchy of prompts or without it."""
    evaluate: Evaluate = Evaluate()
    """What is measured before and after."""

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """What is learned from, in the order given."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @model_validator(mode="after")
    def _each_once(self) -> "Config":
        if len(self.sources) == 1 and self.sources[0].weight != 1:
            raise refusal("data.weight", "must be 1 where there is one source")
        for name, names in (
            ("data", [str(one.path) if isinstance(one, FileData) else one.type for one in self.sources]),
            ("parallel_text", [one.type for one in self.parallel_text]),
        ):
            if twice := [one for one in dict.fromkeys(names) if names.count(one) > 1]:
                raise refusal(name, f"holds {twice[0]} twice; name each source once")
        return self

    @model_validator(mode="after")
    def _heeded(self) -> "Config":
        aligned = any("alignment" in source.use for source in self.parallel_text)
        if aligned and not self.distill.similarity_weight:
            raise refusal(
                "parallel_text",
                "must have use: [translation] where distill.similarity_weight is 0: alignment is "
                "what the hidden-state term does",
            )
        if taught := [code for code in self.evaluate.also if code in self.languages.targets]:
            raise refusal("evaluate.also", f"names {', '.join(taught)}, which languages.targets does too")
        return self

    @model_validator(mode="after")
    def _apart(self) -> "Config":
        if self.compile and self.shard:
            raise refusal("shard", "must be false with compile, which wants a layer whole")
        if self.shard:
            if self.four_bit:
                raise refusal("four_bit", "must be false with shard; each is there for a large model")
            if self.tune.method != "lora":
                raise refusal("tune.method", "must be lora with shard, which splits weights that are frozen")
        return self


ROOTED = {*get_args(Suite), "topic"} - {"demo", "parallel"}
"""Data and suites that lie under the data root."""
