"""Settings of which languages are taught, how they are related, and how much data each may use."""

from typing import Literal

from isogloss.config.base import Code, Count, Place, Settings, Targets
from isogloss.languages import XGLUE_TWELVE, languages


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
    dealt out at random, not at all, by all languages, or by a YAML file of groups (lists of codes)."""
    items: Amounts = Amounts()
    """Parallel items per language of each resource class, over all tasks together."""
    amounts: dict[Code, Count] = {}  # noqa: RUF012  # pydantic copies it
    """Languages with an amount of their own, by code."""
    same_items: bool = True
    """All languages learn the same instructions, as far as their amounts reach; else each its own as far as
    there are enough: more of them in all, and more English answers to make."""

    def amount(self, code: str) -> int:
        """Parallel items that a language may use."""
        return self.amounts.get(code) or getattr(self.items, languages()[code].resource)

    def is_low(self, code: str) -> bool:
        """Whether a language counts as low-resource: by its class, or by an amount as small as the class's.

        Where low-resource languages get more than others, an amount says nothing of the kind.
        """
        fewest = self.items.low <= min(self.items.high, self.items.middle)
        own = self.amounts.get(code)
        return languages()[code].resource == "low" or (fewest and own is not None and own <= self.items.low)
