"""Settings of the target languages: which are trained, how they share adapters, how much data each gets."""

from contextlib import suppress
from typing import Any, Literal

from pydantic import field_validator

from isogloss.config.base import Code, Count, Place, Settings, Targets
from isogloss.languages import XGLUE_TWELVE, UnknownLanguageError, languages, resolve


class Amounts(Settings):
    """Parallel items per language, by resource class; `isogloss languages` shows the classes."""

    high: Count = 512
    """Maximum number of parallel items for each high-resource language, over all tasks together."""
    middle: Count = 192
    """Maximum number of parallel items for each language of the middle resource class."""
    low: Count = 48
    """Maximum number of parallel items for each low-resource language."""


class Languages(Settings):
    """Which languages are trained, how they share adapters, and how much data each gets."""

    targets: Targets = XGLUE_TWELVE
    """Languages to train, by any code or name in the registry (`isogloss languages` lists them)."""
    tree: Literal["families", "random", "flat", "shared"] | Place = "families"
    """How languages share adapters. `families`: by language family. `random`: by random groups, a control.
    `flat`: not at all, one adapter per language. `shared`: one adapter for all. Otherwise the path of a YAML
    file of groups (lists of codes)."""
    items: Amounts = Amounts()
    """Maximum number of parallel items per language, by resource class, over all tasks together."""
    amounts: dict[Code, Count] = {}  # noqa: RUF012  # pydantic copies it
    """Maximum number of parallel items for single languages, by code; overrides the resource class."""
    same_items: bool = True
    """Whether all languages learn the same instructions, up to their amounts. If false, each learns different
    ones as far as there are enough: more instructions in all, and more English answers to generate."""

    @field_validator("amounts", mode="before")
    @classmethod
    def _each_once(cls, given: Any) -> Any:
        spelt: dict[str, str] = {}
        for spelling in given if isinstance(given, dict) else ():
            with suppress(UnknownLanguageError):  # reported with the key's own place
                if (first := spelt.setdefault(resolve(spelling).code, spelling)) != spelling:
                    raise ValueError(f"{first} and {spelling} are the same language; keep one of them")
        return given

    def amount(self, code: str) -> int:
        """Return the maximum number of parallel items for a language."""
        return self.amounts.get(code) or getattr(self.items, languages()[code].resource)

    def is_low(self, code: str) -> bool:
        """Whether a language counts as low-resource: by its class, or by an amount up to that class's.

        If the low class does not get the fewest items, amounts are ignored.
        """
        fewest = self.items.low <= min(self.items.high, self.items.middle)
        own = self.amounts.get(code)
        return languages()[code].resource == "low" or (fewest and own is not None and own <= self.items.low)
