"""Draws: orders examples so that any first n of them are a fair sample.

Public data sets are often sorted by topic, so the first n rows of a file teach one topic and none of the
others. Depends on no file format and no tokenizer.
Flow: examples → their strata (task, label) → order → the first n usable ones, over several sources.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar

from isogloss.data.examples import ParallelExample
from isogloss.languages import SOURCE

T = TypeVar("T")

MOST_LABELS: Final = 128
"""Maximum number of distinct English responses of a task without options that counts as closed."""
FEWEST_HELD: Final = 1000
"""Minimum number of rows held per stratum, so that a handful does not decide which tasks are closed."""
BALANCE: Final = 0.5
"""Exponent of a stratum's size when drawing training examples: a compromise between 0, all labels equally
often, which leads to guessing rare ones, and 1, labels as often as they occur, which shows rare ones too
seldom."""
FIXED: Final = 0
"""Seed of evaluation's draws, which do not depend on a run's seed."""


class Drawn(NamedTuple):
    """The fields of a row that decide a draw: its ID, task and English response."""

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
    """Return all items in draw order.

    Within a stratum, items are ordered by a hash of seed and key, so neither the file's order nor rows added
    to the file change which of two items comes first. Strata are interleaved in proportion to a power of
    their sizes, outer ones first: with 0 they take turns; with 1 the mean over the first items estimates the
    mean over all.

    Args:
        items: The items to draw from, each once.
        seed: Seed of the order.
        key: Identifies an item's meaning, the same in every language.
        strata: Returns the strata of an item, outermost first (task, label); equally many for every item.
        power: Exponent of a stratum's size, from 0 to 1.
    """

    def within(stratum: Sequence[T]) -> list[T]:
        return sorted(stratum, key=lambda item: uniform(seed, key(item)))

    return list(_interleaved(items, strata, within, partial(uniform, seed), power))


def _interleaved(
    items: Sequence[T],
    strata: Callable[[T], tuple[str, ...]],
    within: Callable[[Sequence[T]], Iterable[T]],
    offset: Callable[..., float],
    power: float,
    path: tuple[str, ...] = (),
) -> Iterator[T]:
    """Yield items with their strata interleaved in proportion to a power of their sizes, one at a time.

    Args:
        within: Orders the items of an innermost stratum.
        offset: Maps the names of a stratum, outermost first, to a number from 0 to 1, by which a small one
            comes early or late.
        path: Names of the stratum that contains the items.
    """
    if not items or len(path) == len(strata(items[0])):
        yield from within(items)
        return
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(strata(item)[len(path)], []).append(item)

    def placed(name: str, group: list[T]) -> Iterator[tuple[float, float, T]]:
        start, size = offset(*path, name), len(group) ** power
        for rank, item in enumerate(_interleaved(group, strata, within, offset, power, (*path, name))):
            yield (rank + start) / size, start, item

    # Merged as they are read: `choose` takes a few hundred of thousands.
    turns = heapq.merge(*(placed(*one) for one in groups.items()), key=itemgetter(0, 1))
    yield from (item for _, _, item in turns)


def sample(
    items: Sequence[T],
    most: int,
    *,
    key: Callable[[T], str] = str,
    strata: Callable[[T], tuple[str, ...]] = lambda item: (),
) -> list[T]:
    """Sample `most` items for evaluation in proportion to their strata; keep the order given."""
    if len(items) <= most:
        return list(items)
    drawn = draw(items, FIXED, key=key, strata=strata, power=1)[:most]
    kept = {key(item) for item in drawn}
    return [item for item in items if key(item) in kept]


def first_of_each_task(rows: Iterable[T], most: int, seed: int, of: Callable[[T], Drawn]) -> list[T]:
    """Keep the rows that `in_draw_order` can put among its first `most`; there may be millions of rows.

    Within a stratum the lowest hashes are drawn first, so at most the `most` lowest are held for each; the
    number held then counts as the stratum's size. A task is stratified by label until it has more labels
    than a closed task may have. Rows stay in the order given.

    Args:
        of: Returns the fields of a row that decide a draw.
    """
    # By task and label, a heap with the highest hash on top; an open task has the single label None.
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
        one = -uniform(seed, id), -number, row
        if len(heap) < most:
            heapq.heappush(heap, one)
        else:
            heapq.heappushpop(heap, one)
    found = sorted(
        (-number, row) for labels in held.values() for heap in labels.values() for _, number, row in heap
    )
    return [row for _, row in found]


def in_draw_order(examples: Sequence[ParallelExample], seed: int) -> list[ParallelExample]:
    """Return training examples in draw order.

    Tasks, and the labels of closed tasks, are drawn in proportion to the square root of their size.
    """
    labels = labels_of(examples)
    return draw(
        examples, seed, key=lambda e: e.id, strata=lambda e: (e.task, labels.get(e.id, "")), power=BALANCE
    )


def labels_of(examples: Sequence[ParallelExample]) -> dict[str, str]:
    """Map the ID of each example of a closed task to its label, the English response.

    A task is closed if its options are known, or if at least three examples share a response on average and
    there are at most `MOST_LABELS` distinct responses.
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


def uniform(*parts: object) -> float:
    """Hash the parts to a number from 0 to 1, the same on every machine."""
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
    """Return the indices of the examples for each language: the first usable ones of every source.

    A language's amount is divided among the sources that have the language in proportion to their weights;
    what a source cannot fill goes to the others.

    Args:
        examples: Examples in draw order.
        amounts: Maximum number of examples for each language.
        weights: Weight of each source, indexed by an example's `source`.
        lack: Returns why an example cannot be used in a language; None if it can.
        same: All languages start at the first example; otherwise each starts at its own offset in every
            stratum, evenly spaced, so that together they cover more examples.
    """
    chosen: dict[str, list[int]] = {}
    labels = {} if same else labels_of(examples)
    strata = [(example.task, labels.get(example.id, "")) for example in examples].__getitem__

    for language, (code, amount) in enumerate(amounts.items()):
        there: dict[int, list[int]] = {}
        for n, example in enumerate(examples):
            if code in example.turns:
                there.setdefault(example.source, []).append(n)
        held = {source: len(places) for source, places in there.items()}
        rest = {source: iter(places) for source, places in there.items()}
        if not same:
            share = language / len(amounts)
            rest = {source: _begun_at(places, share, strata) for source, places in there.items()}
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
            held |= short  # these sources are exhausted; the others fill up
        chosen[code] = sorted(n for source, count in wanted.items() for n in found[source][:count])
    return chosen


def _begun_at(places: list[int], share: float, strata: Callable[[int], tuple[str, ...]]) -> Iterator[int]:
    """Rotate a draw: start each stratum at the fraction `share` of its length, and shift its turns likewise.

    Any first n then cover tasks and labels as evenly as those that start at the first example.
    """

    def within(stratum: Sequence[int]) -> list[int]:
        start = int(len(stratum) * share)
        return [*stratum[start:], *stratum[:start]]

    return _interleaved(places, strata, within, lambda *path: (uniform(*path) + share) % 1, BALANCE)


K = TypeVar("K")


def shares(amount: int, weights: Mapping[K, float], held: Mapping[K, int]) -> dict[K, int]:
    """Divide an amount in proportion to weights by largest remainders; no share exceeds what is held."""
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
