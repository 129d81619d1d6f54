"""What all settings are made of: strict, frozen models, types of values, and refusals of combinations."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from isogloss.languages import SOURCE, resolve

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


def code_of(spelling: str) -> str:
    """Our code of a language, by any of its codes or names."""
    return resolve(spelling).code  # an UnknownLanguageError is a ValueError: one line, with the nearest code


def target_of(code: str) -> str:
    """A language that is not English."""
    if code == SOURCE:
        raise ValueError("English is what all others follow; leave it out")
    return code


def once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Each value once, in the order given."""
    return tuple(dict.fromkeys(values))


def refusal(name: str, message: str) -> PydanticCustomError:
    """A setting that cannot stand beside its neighbours: `tune.batch_size must be …`."""
    return PydanticCustomError("refusal", "{message}", {"name": name, "message": message})


def without_effect(settings: S, *cases: tuple[Any, Iterable[str], str]) -> S:
    """Refuse what was changed and does nothing beside its neighbours.

    A value that equals its default passes, so that resolved settings can be read again.

    Args:
        cases: Whether settings are without effect, their names, and why.
    """
    for idle, names, why in cases:
        for name in names:
            if idle and getattr(settings, name) != type(settings).model_fields[name].default:
                raise refusal(name, f"has no effect {why}")
    return settings


def home(path: T) -> T:
    """A path, or a text that may be one, with a leading `~` written out."""
    written = os.path.expanduser(path)  # type: ignore[call-overload]  # noqa: PTH111  # keeps an unknown ~user
    return type(path)(written)  # type: ignore[call-arg]


Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rank = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Place = Annotated[Path, AfterValidator(home)]
"""A file or folder; `~` is the user's home."""
ModelName = Annotated[Text, AfterValidator(home)]
"""A model's folder, in which `~` is the user's home, or its hub name."""
Code = Annotated[str, AfterValidator(code_of)]
Others = Annotated[tuple[Annotated[Code, AfterValidator(target_of)], ...], AfterValidator(once)]
"""Languages that follow English."""
Targets = Annotated[
    tuple[Annotated[Code, AfterValidator(target_of)], ...], Field(min_length=1), AfterValidator(once)
]


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Optimisation(Settings):
    """What the optimiser of either stage goes by; the learning rate is each stage's own."""

    batch_size: Count = 32
    """Rows per optimiser step."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches that an optimiser step's rows are read in."""
    warmup_ratio: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0; then it falls to 0 as a cosine."""
    adam_beta1: Beta = 0.9
    """AdamW's decay of its mean of gradients."""
    adam_beta2: Beta = 0.98
    """AdamW's decay of its mean of squared gradients."""
    max_grad_norm: Weight = 1.0
    """Norm above which a step's gradient is scaled down; 0 clips nothing."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise refusal(
                "gradient_accumulation_steps", f"must divide batch_size, which is {self.batch_size}"
            )
        return self
