"""Pairs of related statements, from which inference and paraphrase items are made.

Every event that is drawn belongs to the same split as the event it is paired with.
"""

import random
from dataclasses import replace

from isogloss.data.demo.grammar import Event, meanings
from isogloss.data.demo.split import events_by_deed, events_of, split_of

Said = tuple[Event, str]
"""An event and the sentence pattern that expresses it."""
SHORT = ("no_when", "no_where")
WHOLE = ("full", "fronted")


def infer(event: Event, verdict: str, rng: random.Random) -> tuple[Said, Said]:
    """Return a premise about the event and a hypothesis that follows from it, contradicts it, or neither."""
    whole = rng.choice(WHOLE)
    match verdict:
        case "entailment":
            # Denying the whole event does not deny it without its place or time.
            return (event, whole), (event, rng.choice(WHOLE if event.denied else WHOLE + SHORT))
        case "contradiction":
            hypothesis = rng.choice(WHOLE if event.denied else WHOLE + SHORT)
            return (event, whole), (replace(event, denied=not event.denied), hypothesis)
        case "neutral":
            match rng.randrange(3):
                case 0:  # the hypothesis claims more than the premise
                    told = event.affirmed()
                    return (told, rng.choice(SHORT)), (replace(told, denied=rng.random() < 0.3), whole)
                case 1:
                    return (event, whole), (another_person(event, rng), rng.choice(WHOLE + SHORT))
                case _:
                    return (event, whole), (another_deed(event, rng), rng.choice(WHOLE + SHORT))
        case _:
            raise ValueError(f"{verdict!r} is not a verdict; it must be entailment, contradiction or neutral")


def vary(event: Event, same: bool, rng: random.Random) -> tuple[Said, Said]:
    """Return two wordings of one event, or of two events that differ in one respect."""
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
    # The word order differs in both cases, so that it does not reveal the answer.
    return (event, first), (other, second)


def another_person(event: Event, rng: random.Random) -> Event:
    """Return the same action by another person."""
    return replace(event, person=rng.choice([p for p in meanings()["people"] if p != event.person]))


def another_scene(event: Event, rng: random.Random) -> Event:
    """Return the same action at another place or time."""
    scenes = events_by_deed(split_of(event)).get((event.person, event.action), ())
    scenes = [e for e in scenes if e != event.affirmed()]
    # If the split has no other scene for the action, change the action itself.
    return replace(rng.choice(scenes), denied=event.denied) if scenes else another_deed(event, rng)


def another_deed(event: Event, rng: random.Random) -> Event:
    """Return another action by the same person."""
    while True:
        other = rng.choice(events_of(split_of(event)))
        if other.action != event.action:
            return replace(other, person=event.person, denied=event.denied)
