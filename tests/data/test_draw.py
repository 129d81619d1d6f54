"""Draws: any first n items are a fair sample, and remain one when the file grows."""

from collections import Counter

import pytest

from isogloss.data.draw import (
    Drawn,
    choose,
    draw,
    first_of_each_task,
    in_draw_order,
    labels_of,
    sample,
    shares,
)
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.sources import lacking


def example(id: str, task: str = "qa", label: str | None = None, codes=("en", "es", "sw"), source: int = 0):
    turns = {code: Turn(f"{id} {code}", label if code == "en" else "x") for code in codes}
    return ParallelExample(id, task, turns, source=source)


SORTED = [
    example(f"{task}-{label}-{n}", task, label)
    for task, labels in (("topic", "abcde"), ("mood", "+-"))
    for label in labels
    for n in range(30)
]
"""210 examples, sorted by task and label as in public data sets."""


def strata(e: ParallelExample) -> tuple[str, str]:
    return e.task, e.turns["en"].response or ""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [10, 20, 60])
def test_with_power_0_any_first_n_are_balanced_over_tasks_and_labels(count, seed):
    """Tasks take turns, and so do the labels within a task."""
    drawn = draw(SORTED, seed, key=lambda e: e.id, strata=strata, power=0)
    met = Counter(map(strata, drawn[:count]))
    tasks = Counter(task for task, _ in met.elements())
    assert tasks == {"topic": count / 2, "mood": count / 2}
    assert {met["topic", label] for label in "abcde"} == {count / 10}
    assert {met["mood", label] for label in "+-"} <= {count // 4, -(-count // 4)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_draws_labels_by_the_square_root_of_their_size(seed):
    """Of the first 55 rows, labels with 900, 100, 100 and 25 items get 30, 10, 10 and 5."""
    sizes = {"common": 900, "some": 100, "others": 100, "rare": 25}
    items = [example(f"{label}{n}", label=label) for label in sizes for n in range(sizes[label])]
    met = Counter(e.turns["en"].response for e in in_draw_order(items, seed)[:55])
    for label, count in {"common": 30, "some": 10, "others": 10, "rare": 5}.items():
        assert abs(met[label] - count) <= 1


def test_the_draw_does_not_depend_on_the_order_of_the_file():
    """Two seeds give different draws."""
    ids = [e.id for e in in_draw_order(SORTED, 3)]
    assert [e.id for e in in_draw_order(SORTED[::-1], 3)] == ids
    assert [e.id for e in in_draw_order(SORTED, 4)][:50] != ids[:50]


def test_the_order_within_a_label_is_kept_when_the_file_grows():
    """New rows fall between the old ones."""
    more = [example(f"new-{n}", "topic", "a") for n in range(50)]
    before, after = ([e.id for e in in_draw_order(some, 0)] for some in (SORTED, [*more, *SORTED]))
    for label in ("topic-a", "topic-e", "mood-+"):
        old = [id for id in before if id.startswith(label)]
        assert [id for id in after if id.startswith(label)] == old


@pytest.mark.parametrize("most", [4, 7, 40])
def test_the_rows_that_are_drawn_first_are_held(most, monkeypatch):
    """For each task and label, the first `most` of the draw are held, in the order of the file."""
    monkeypatch.setattr("isogloss.data.draw.FEWEST_HELD", 1)
    rare = [example(f"rare-{n}", "rare", "a" if n % 50 else "b") for n in range(200)]
    opened = [example(f"open-{n}", "open", f"answer {n}") for n in range(300)]
    whole = [*SORTED, *opened, *rare]
    held = first_of_each_task(
        iter(whole), most, 3, lambda e: Drawn(e.id, e.task, e.turns["en"].response or "")
    )
    assert held == [e for e in whole if e in held]

    def parts(some) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for e in in_draw_order(some, 3):
            found.setdefault((e.task, "" if e.task == "open" else strata(e)[1]), []).append(e.id)
        return found

    assert parts(held) == {part: ids[:most] for part, ids in parts(whole).items()}


def test_open_tasks_have_no_labels():
    """Thirty different answers to thirty questions are no classes, unless they are options."""
    opened = [example(str(n), "qa", f"answer {n}") for n in range(30)]
    assert labels_of(opened) == {}
    assert labels_of(SORTED[:60])["topic-b-0"] == "b"
    options = {"en": {"1": "answer 1"}}
    closed = [ParallelExample(e.id, e.task, e.turns, options) for e in opened]
    assert labels_of(closed)["7"] == "answer 7"


def test_an_evaluation_sample_keeps_proportions_and_order():
    """A sample of 20 from 90 and 10 items has 18 and 2, whatever the run's seed."""
    items = [("common", n) for n in range(90)] + [("rare", n) for n in range(10)]
    found = sample(items, 20, key=str, strata=lambda item: item[:1])
    assert Counter(name for name, _ in found) == {"common": 18, "rare": 2}
    assert found == sorted(found) and found[:18] != items[:18]
    assert sample(items, 100, key=str, strata=lambda item: item[:1]) == items


def test_proportional_strata_of_one_item_are_drawn_at_random():
    """With a hundred labels of one item each, the first ten come from all over the file."""
    drawn = draw(range(100), 0, key=str, strata=lambda n: (str(n),), power=1)
    assert sorted(drawn) == list(range(100)) and max(drawn[:10]) > 50 > min(drawn[:10])


@pytest.mark.parametrize(
    ("amount", "weights", "held", "expected"),
    [
        (48, {0: 1.0, 1: 1.0}, {0: 100, 1: 100}, {0: 24, 1: 24}),
        (48, {0: 2.0, 1: 1.0}, {0: 100, 1: 100}, {0: 32, 1: 16}),
        (48, {0: 1.0, 1: 1.0}, {0: 10, 1: 100}, {0: 10, 1: 38}),  # the other source fills the gap
        (48, {0: 1.0, 1: 1.0, 2: 2.0}, {0: 5, 1: 9, 2: 11}, {0: 5, 1: 9, 2: 11}),
        (7, {0: 1.0, 1: 1.0, 2: 1.0}, {0: 9, 1: 9, 2: 0}, {0: 4, 1: 3, 2: 0}),
    ],
)
def test_an_amount_is_shared_by_weight(amount, weights, held, expected):
    """Rounded by largest remainders."""
    assert shares(amount, weights, held) == expected


def usable(e: ParallelExample, code: str) -> str | None:
    return lacking(e, code, "reference")


def test_a_smaller_language_gets_the_first_items_of_a_larger_one():
    """So both learn the same meanings."""
    drawn = in_draw_order(SORTED, 0)
    chosen = choose(drawn, {"es": 120, "sw": 40}, [1.0], usable)
    assert chosen["sw"] == chosen["es"][:40] == list(range(40))


def test_languages_with_their_own_items_get_the_same_label_mix():
    """Twelve languages draw alike from labels of 900, 100 and 25 items, and hardly any item twice."""
    codes = ["ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi"]
    sizes = {"common": 900, "some": 100, "rare": 25}
    items = [
        example(f"{label}{n}", label=label, codes=("en", *codes))
        for label in sizes
        for n in range(sizes[label])
    ]
    drawn = in_draw_order(items, 0)
    chosen = choose(drawn, dict.fromkeys(codes, 45), [1.0], usable, same=False)
    for places in chosen.values():
        found = Counter(drawn[n].turns["en"].response for n in places)
        assert abs(found["common"] - 30) <= 1 and abs(found["some"] - 10) <= 1 and abs(found["rare"] - 5) <= 1
    every = [n for places in chosen.values() for n in places]
    of = {label: [n for n in every if drawn[n].turns["en"].response == label] for label in sizes}
    assert len(set(of["common"])) == len(of["common"]) >= 350
    assert len(set(of["some"])) >= 95 and len(set(of["rare"])) == 25


def test_a_small_language_with_its_own_items_starts_at_other_labels():
    """Of sixty labels, it gets twelve that the other language has not; the draw wraps around at its end."""
    items = [example(str(n), label=f"label {n % 60}") for n in range(300)]
    drawn = in_draw_order(items, 0)
    chosen = choose(drawn, {"es": 30, "sw": 12}, [1.0], usable, same=False)
    labels = {code: {drawn[n].turns["en"].response for n in places} for code, places in chosen.items()}
    assert (len(labels["es"]), len(labels["sw"])) == (30, 12) and not labels["es"] & labels["sw"]
    whole = choose(drawn, {"es": 3, "sw": 300}, [1.0], usable, same=False)["sw"]
    assert whole == [*range(300)]


def test_a_source_without_a_language_leaves_its_share_to_the_others():
    """Weights apply among the sources that have the language; unusable items are skipped."""
    first = [example(f"a{n}", label="x", codes=("en", "es")) for n in range(40)]
    second = [example(f"b{n}", label="x", source=1) for n in range(40)]
    blank = [
        ParallelExample(f"c{n}", "qa", {"en": Turn("q", "a"), "sw": Turn("s", " ")}, source=1)
        for n in range(3)
    ]
    chosen = choose([*first, *blank, *second], {"es": 12, "sw": 12}, [3.0, 1.0], usable)
    assert chosen["es"] == [*range(9), 43, 44, 45]
    assert chosen["sw"] == list(range(43, 55))
    assert choose([*first, *blank], {"sw": 5}, [1.0, 1.0], usable) == {"sw": []}
