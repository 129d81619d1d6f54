"""Split of meanings into train, dev and test, by a hash of the meaning.

What was done, where and when decides the split, no matter who did it and whether it is denied. So no test
meaning occurs in training, in any language or task, nor in the base model's training.
"""

import hashlib
from functools import cache
from typing import Literal

from isogloss.data.demo.grammar import Event, events

Split = Literal["train", "dev", "test"]


def split_of(event: Event) -> Split:
    """Return the split of an event: about 86 % train, 7 % dev, 7 % test."""
    key = "/".join((event.action, event.place, event.time))
    share = hashlib.sha256(key.encode()).digest()[0] / 256
    return "train" if share < 0.86 else "dev" if share < 0.93 else "test"


@cache
def events_of(split: Split) -> tuple[Event, ...]:
    """Return the split's affirmed events, in a fixed order."""
    return tuple(event for event in events() if split_of(event) == split)


@cache
def events_by_deed(split: Split) -> dict[tuple[str, str], tuple[Event, ...]]:
    """Return the split's events by (person, action): the same action at several places and times."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events_of(split):
        groups.setdefault((event.person, event.action), []).append(event)
    return {key: tuple(group) for key, group in groups.items()}
