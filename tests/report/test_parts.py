"""Curves, nodes and costs: geometry and order, checked by hand."""

import math

from isogloss.report import costs, curves, nodes

from .conftest import LEDGER, make_curves, make_tree


def test_a_curve_runs_from_corner_to_corner_of_its_box():
    rows = [{"stage": "tune", "step": 0, "loss": 4.0}, {"stage": "tune", "step": 100, "loss": 0.0}]
    (chart,), further = curves.charts(rows)
    assert chart.line == "44,12 348,160"
    assert [tick.text for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert chart.summary == "4 → 0 over 2 logged steps"
    assert further == []


def test_a_long_curve_is_averaged_over_a_stated_number_of_steps():
    main, further = curves.charts(make_curves())
    names = [(chart.stage, chart.quantity, chart.steps_per_point) for chart in main]
    assert names == [
        *[("tune", "loss", 4), ("distill", "loss", 1), ("distill", "kl", 1)],
        *[("distill", "ce", 1), ("distill", "similarity", 1)],
    ]
    assert [chart.quantity for chart in further] == ["lr"]
    assert len(main[0].line.split()) == 125


def test_a_loss_that_is_not_finite_is_left_out_and_counted():
    rows = [{"stage": "tune", "step": s, "loss": v} for s, v in enumerate([2.0, math.nan, math.inf, 1.0])]
    (chart,), _ = curves.charts(rows)
    assert (chart.left_out, chart.summary) == (2, "2 → 1 over 2 logged steps")


def test_a_curve_of_a_single_step_is_drawn():
    (chart,), _ = curves.charts([{"stage": "tune", "step": 1, "loss": 0.0}])
    assert "nan" not in chart.line


def test_the_tree_does_not_depend_on_the_order_of_its_nodes():
    (root,) = nodes.grow(make_tree()["nodes"])
    assert root.name == "root"
    assert [child.name for child in root.children] == [
        *["afro-asiatic", "indo-european", "atlantic-congo", "other"]
    ]
    assert [leaf.name for leaf in root.children[1].children] == ["bg", "el", "es", "fr", "hi", "ru", "ur"]
    assert nodes.total_rank(make_tree()["nodes"]) == 72  # 8 + 4 families of 4 + 12 leaves of 4


def test_orphans_and_cycles_are_shown_without_looping():
    rows = [
        {"name": "orphan", "level": "language", "parent": "gone"},
        {"name": "a", "level": "family", "parent": "b"},
        {"name": "b", "level": "family", "parent": "a"},
    ]
    assert [root.name for root in nodes.grow(rows)] == ["orphan", "a", "b"]


def test_costs_are_summed_and_memory_is_the_highest():
    assert costs.totals(LEDGER["stages"]) == [
        *["20 min 46 s", "16.5 M", "6.30 M", "8,400", "3,296", "921 TFLOP", "2.10 GiB", "76.8 kJ"]
    ]
    assert (
        costs.one_line(LEDGER["stages"])
        == "20 min 46 s · 16.5 M tokens forwarded · 921 TFLOP · peak memory 2.10 GiB"
    )
