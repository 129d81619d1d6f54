"""Draws: in which order examples are taken, so that any first n of them are a fair sample.

Public sets are sorted by topic more often than not, so the first n of a file teach one topic, and say of the
others nothing. Knows no file, no tokenizer and no language.
Flow: examples → their strata (task, label) → order → the first n that can be used, over several sources.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from isogloss.data.examples import ParallelExample
from isogloss.languages import SOURCE

T = TypeVar("T")

MOST_LABELS: Final = 128
"""Distinct English responses that a task without options may have and still count as closed."""
FEWEST_HELD: Final = 1000
"""Of a stratum, however few are wanted, so that which tasks are closed is not judged by a handful."""
BALANCE: Final = 0.5
"""Power of a stratum's size by which training examples are drawn: between every label as often as any other,
which leads to guessing rare ones, and as often as it occurs, which shows rare ones too seldom."""
FIXED: Final = 0
"""The seed of evaluation's draws, which do not depend on a run's."""


class Drawn(NamedTuple):
    """What a draw goes by: of a row its id, its task, and its English response."""

    id: str
    task: str
    label: str


def draw(
    items: Sequence[T],
    seed: int,
    *,
    key: Callable[[T], str],
    strata: Callable[[T], tuple[str, ...]],
    power: float,
) -> list[T]:
    """All items in the order in which they are drawn.

    Within a stratum the order is that of a hash of seed and key: neither the file's order nor what is added
    to the file changes which of two items comes first. Strata are met in proportion to a power of their
    sizes, the outer ones first: 0 lets them take turns; 1 makes a mean over the items drawn an estimate of
    the mean over all.

    Args:
        items: What is drawn from, each once.
        seed: Another seed draws others.
        key: What identifies an item's meaning, the same in every language.
        strata: Of an item, outermost first: its task, its label. As many of every item.
        power: From 0 to 1.
    """

    def ordered(some: Sequence[T], path: tuple[str, ...]) -> list[T]:
        if not some or len(path) == len(strata(some[0])):
            return sorted(some, key=lambda item: _hash(seed, key(item)))
        groups = _grouped(some, lambda item: strata(item)[len(path)])
        return _interleaved(
            [(_hash(seed, *path, name), ordered(group, (*path, name))) for name, group in groups.items()],
            power,
        )

    return ordered(items, ())


def _grouped(items: Iterable[T], by: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


def _interleaved(groups: Iterable[tuple[float, Sequence[T]]], power: float) -> list[T]:
    """Sequences as one, each met in proportion to a power of its length, in its own order.

    Args:
        groups: Each with a start of its own, from 0 to 1, which lets a short one come early or late.
    """
    placed = [
        ((rank + start) / len(group) ** power, start, item)
        for start, group in groups
        for rank, item in enumerate(group)
    ]
    return [item for _, _, item in sorted(placed, key=lambda one: one[:2])]


def sample(
    items: Sequence[T], most: int, *, key: Callable[[T], str], strata: Callable[[T], tuple[str, ...]]
) -> list[T]:
    """What an evaluation reads: so many items, in proportion to their strata, in the order given."""
    if len(items) <= most:
        return list(items)
    drawn = draw(items, FIXED, key=key, strata=strata, power=1)[:most]
    kept = {key(item) for item in drawn}
    return [item for item in items if key(item) in kept]


def first_of_each_task(rows: Iterable[T], most: int, seed: int, of: Callable[[T], Drawn]) -> list[T]:
    """Of rows that may be millions all that `in_draw_order` can put among its first `most`, as they came.

    Within a stratum the lowest hashes are drawn first, so that of each no more than the lowest `most` are
    held; it is drawn as often as one of the size that is held. A task may have labels for strata until it is
    met with more of them than a closed one has.

    Args:
        of: What counts of a row.
    """
    # By task and label, the highest hash on top of a heap; a task that is open has one label, None.
    held: dict[str, dict[str | None, list[tuple[float, int, T]]]] = {}
    most = max(most, FEWEST_HELD)
    for number, row in enumerate(rows):
        id, task, label = of(row)
        labels = held.setdefault(task, {})
        if None in labels:
            label = None
        elif label not in labels and len(labels) == MOST_LABELS:
            together = sorted(one for heap in labels.values() for one in heap)[-most:]
            heapq.heapify(together)
            labels.clear()
            labels[label := None] = together
        heap = labels.setdefault(label, [])
        one = -_hash(seed, id), -number, row
        if len(heap) < most:
            heapq.heappush(heap, one)
        else:
            heapq.heappushpop(heap, one)
    found = sorted(
        (-number, row) for labels in held.values() for heap in labels.values() for _, number, row in heap
    )
    return [row for _, row in found]


def in_draw_order(examples: Sequence[ParallelExample], seed: int) -> list[ParallelExample]:
    """Training examples as they are drawn: by the square root of how many a task has, and of a closed task
    each label."""
    labels = labels_of(examples)
    return draw(
        examples, seed, key=lambda e: e.id, strata=lambda e: (e.task, labels.get(e.id, "")), power=BALANCE
    )


def labels_of(examples: Sequence[ParallelExample]) -> dict[str, str]:
    """By id the label of each example of a closed task: its English response.

    A task is closed where its options are known, or where three examples and more share a response on
    average, and no more than `MOST_LABELS` responses are met.
    """
    responses: dict[str, Counter[str]] = {}
    for example in examples:
        if (label := _label(example)) is not None:
            responses.setdefault(example.task, Counter())[label] += 1
    closed = {
        task for task, found in responses.items() if len(found) <= min(MOST_LABELS, found.total() / 3)
    } | {example.task for example in examples if example.options}
    return {e.id: label for e in examples if e.task in closed and (label := _label(e)) is not None}


def _label(example: ParallelExample) -> str | None:
    twin = example.turns.get(SOURCE)
    return twin.response.strip() if twin and twin.response else None


def _hash(*parts: object) -> float:
    """A number from 0 to 1 that the parts decide, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def choose(
    examples: Sequence[ParallelExample],
    amounts: Mapping[str, int],
    weights: Sequence[float],
    lack: Callable[[ParallelExample, str], str | None],
    *,
    same: bool = True,
) -> dict[str, list[int]]:
    """By language the places of the examples that it learns from: the first usable ones of every source.

    A source gets its share of a language's amount in proportion to its weight, over the sources that have the
    language; what it cannot fill goes to the others.

    Args:
        examples: In the order in which they are drawn.
        amounts: How many each language takes, at most.
        weights: Of each source; `source` of an example is the place of its own.
        lack: Why an example cannot be used in a language; None where it can.
        same: All languages begin with the first example; else each at a place of its own in every stratum,
            evenly apart, so that together they read more of them.
    """
    chosen: dict[str, list[int]] = {}
    others = [code for code in amounts if code != SOURCE]
    # English alone is replay: it has no say in which of the others' tasks are closed.
    labels = {} if same else labels_of([e for e in examples if e.turns.keys() != {SOURCE}])

    def strata(n: int) -> tuple[str, str]:
        return examples[n].task, labels.get(examples[n].id, "")

    for code, amount in amounts.items():
        there: dict[int, list[int]] = {}
        for n, example in enumerate(examples):
            if code in example.turns:
                # English is not divided: what stage 1 has read comes before the others' twins.
                there.setdefault(0 if code == SOURCE else example.source, []).append(n)
        if not same and code != SOURCE:
            there = {
                source: _begun_at(places, others.index(code) / len(others), strata)
                for source, places in there.items()
            }
        held = {source: len(places) for source, places in there.items()}
        rest = {source: iter(places) for source, places in there.items()}
        found: dict[int, list[int]] = {source: [] for source in there}
        while True:
            wanted = shares(amount, {source: weights[source] for source in there}, held)
            for source, count in wanted.items():
                while len(found[source]) < count and (n := next(rest[source], None)) is not None:
                    if lack(examples[n], code) is None:
                        found[source].append(n)
            short = {source: len(found[source]) for source in there if len(found[source]) < wanted[source]}
            if not short:
                break
            held |= short  # it has no more; the others fill up
        chosen[code] = sorted(n for source, count in wanted.items() for n in found[source][:count])
    return chosen


def _begun_at(places: list[int], share: float, strata: Callable[[int], tuple[str, ...]]) -> list[int]:
    """The same drawn anew: what is in a stratum begins at a share of the way, and so does its turn.

    So any first n hold tasks and labels as evenly as those that begin at the first example.
    """

    def ordered(some: list[int], path: tuple[str, ...]) -> list[int]:
        if len(path) == len(strata(some[0])):
            return _from(some, share)
        groups = _grouped(some, lambda n: strata(n)[len(path)])
        return _interleaved(
            [
                ((_hash(*path, name) + share) % 1, ordered(group, (*path, name)))
                for name, group in groups.items()
            ],
            BALANCE,
        )

    return ordered(places, ()) if places else []


def _from(some: list[T], share: float) -> list[T]:
    """The same in a circle, begun at a share of the way."""
    start = int(len(some) * share)
    return some[start:] + some[:start]


K = TypeVar("K")


def shares(amount: int, weights: Mapping[K, float], held: Mapping[K, int]) -> dict[K, int]:
    """An amount divided in proportion to weights, by largest remainders; nobody gets more than is held."""
    got = dict.fromkeys(weights, 0)
    while (left := min(amount, sum(held[one] for one in weights)) - sum(got.values())) > 0:
        open_ones = [one for one in weights if got[one] < held[one]]
        whole = sum(weights[one] for one in open_ones)
        exact = {one: left * weights[one] / whole for one in open_ones}
        given = {one: int(exact[one]) for one in open_ones}
        spare = left - sum(given.values())
        for one in sorted(open_ones, key=lambda one: given[one] - exact[one])[:spare]:
            given[one] += 1
        for one in open_ones:
            got[one] = min(held[one], got[one] + given[one])
    return got
