"""Building blocks of all settings: the base model, value types, and errors for settings that conflict."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from isogloss.languages import SOURCE, resolve

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


def code_of(spelling: str) -> str:
    """Return the isogloss code of a language, given any of its codes or names."""
    return resolve(spelling).code  # UnknownLanguageError is a ValueError: one line with the closest code


def target_of(code: str) -> str:
    """Return the code unless it is English."""
    if code == SOURCE:
        raise ValueError("English is the source language; leave it out")
    return code


def once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Remove duplicates, keeping the order."""
    return tuple(dict.fromkeys(values))


def refusal(name: str, message: str) -> PydanticCustomError:
    """Return the error for a setting that conflicts with others, such as `tune.batch_size must be …`."""
    return PydanticCustomError("refusal", "{message}", {"name": name, "message": message})


def without_effect(settings: S, *cases: tuple[Any, Iterable[str], str]) -> S:
    """Raise an error for settings that were changed but have no effect given the others.

    A value that equals its default passes, so that resolved settings can be read back.

    Args:
        cases: Tuples of whether the settings have no effect, their names, and the reason.
    """
    for idle, names, why in cases:
        for name in names:
            if idle and getattr(settings, name) != type(settings).model_fields[name].default:
                raise refusal(name, f"has no effect {why}")
    return settings


def home(path: T) -> T:
    """Expand a leading `~` in a path, or in a string that may be a path."""
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
"""A file or folder; a leading `~` is expanded."""
ModelName = Annotated[Text, AfterValidator(home)]
"""A model's folder, in which a leading `~` is expanded, or its Hub name."""
Code = Annotated[str, AfterValidator(code_of)]
Others = Annotated[tuple[Annotated[Code, AfterValidator(target_of)], ...], AfterValidator(once)]
"""Languages other than English."""
Targets = Annotated[
    tuple[Annotated[Code, AfterValidator(target_of)], ...], Field(min_length=1), AfterValidator(once)
]


class Settings(BaseModel):
    """Base class of all settings."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Optimisation(Settings):
    """Optimiser settings that both stages have; each stage defines its own learning rate."""

    batch_size: Count = 32
    """Rows per optimiser step, over all processes and micro-batches."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches per optimiser step; must divide batch_size. More of them take less memory."""
    warmup_ratio: Fraction = 0.05
    """Share of the steps with linear learning-rate warm-up from 0; cosine decay to 0 follows."""
    adam_beta1: Beta = 0.9
    """AdamW's beta1: decay rate of the running mean of gradients."""
    adam_beta2: Beta = 0.98
    """AdamW's beta2: decay rate of the running mean of squared gradients."""
    max_grad_norm: Weight = 1.0
    """Maximum gradient norm for gradient clipping; 0 disables clipping."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise refusal(
                "gradient_accumulation_steps", f"must divide batch_size, which is {self.batch_size}"
            )
        return self
