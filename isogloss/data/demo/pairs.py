"""Two statements and how they relate: what inference and paraphrase items are made of.

Every event drawn stays in the split of the event it is drawn for.
"""

import random
from dataclasses import replace

from isogloss.data.demo.grammar import Event, meanings
from isogloss.data.demo.split import events_by_deed, events_of, split_of

Said = tuple[Event, str]
"""An event and the sentence pattern that words it."""
SHORT = ("no_when", "no_where")
WHOLE = ("full", "fronted")


def infer(event: Event, verdict: str, rng: random.Random) -> tuple[Said, Said]:
    """A premise about the event and a hypothesis that follows, contradicts it, or neither."""
    whole = rng.choice(WHOLE)
    match verdict:
        case "entailment":
            # A denied event is only known to be denied as a whole.
            return (event, whole), (event, rng.choice(WHOLE if event.denied else WHOLE + SHORT))
        case "contradiction":
            hypothesis = rng.choice(WHOLE if event.denied else WHOLE + SHORT)
            return (event, whole), (replace(event, denied=not event.denied), hypothesis)
        case "neutral":
            match rng.randrange(3):
                case 0:  # more is claimed than was said
                    told = event.affirmed()
                    return (told, rng.choice(SHORT)), (replace(told, denied=rng.random() < 0.3), whole)
                case 1:
                    return (event, whole), (another_person(event, rng), rng.choice(WHOLE + SHORT))
                case _:
                    return (event, whole), (another_deed(event, rng), rng.choice(WHOLE + SHORT))
        case _:
            raise ValueError(f"{verdict!r} is no verdict; it must be entailment, contradiction or neutral")


def vary(event: Event, same: bool, rng: random.Random) -> tuple[Said, Said]:
    """Two wordings of one event, or of two that differ in one respect."""
    first, second = rng.sample(WHOLE, 2)
    if same:
        return (event, first), (event, second)
    match rng.randrange(3):
        case 0:
            other = another_person(event, rng)
        case 1:
            other = replace(event, denied=not event.denied)
        case _:
            other = another_scene(event, rng)
    # The order of words must not give the answer away.
    return (event, first), (other, second)


def another_person(event: Event, rng: random.Random) -> Event:
    """The same deed of somebody else."""
    return replace(event, person=rng.choice([p for p in meanings()["people"] if p != event.person]))


def another_scene(event: Event, rng: random.Random) -> Event:
    """The same deed at another place or time."""
    scenes = events_by_deed(split_of(event)).get((event.person, event.action), ())
    scenes = [e for e in scenes if e != event.affirmed()]
    # Every action has more than one scene in each split, or the deed itself must change.
    return replace(rng.choice(scenes), denied=event.denied) if scenes else another_deed(event, rng)


def another_deed(event: Event, rng: random.Random) -> Event:
    """Something else that the same person did."""
    while True:
        other = rng.choice(events_of(split_of(event)))
        if other.action != event.action:
            return replace(other, person=event.person, denied=event.denied)
