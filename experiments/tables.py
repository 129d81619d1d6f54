"""Tables for ablations and method comparisons."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from isogloss.cli.screen import out, print_line
from isogloss.cli.tables import difference_cells


def show_ablation(summary: Sequence[dict], differences: Sequence[dict]) -> None:
    """Print each variant's means over seeds, then its difference from the variant compared with."""
    for suite in dict.fromkeys(entry["suite"] for entry in summary):
        measured = {name for entry in summary if entry["suite"] == suite for name in entry}
        shown = [n for n in ("alignment", "consistency", "retrieval") if n in measured] or ["accuracy"]
        names = (shown[0], "low", *shown[1:], "fidelity", "retention")
        table = Table(box=None, header_style="bold", pad_edge=False, title=suite, title_justify="left")
        table.add_column("variant", no_wrap=True)
        for name in (*names, "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for entry in summary:
            if entry["suite"] == suite:
                cells = [mean_cell(entry.get(name), 100) for name in names]
                table.add_row(escape(entry["variant"]), *cells, mean_cell(entry.get("seconds"), 1))
        out.print(table)
        against = [one for one in differences if one["suite"] == suite]
        if not against:
            continue
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, name in enumerate(
            (
                against[0]["measure"],
                "against",
                "languages",
                "difference",
                "95 % interval",
                "p, items",
                "n",
                "p, seeds",
            )
        ):
            table.add_column(name, no_wrap=True, justify="left" if number < 3 else "right")
        for one in against:
            seeds = "–" if one["p_seeds"] is None else f"{one['p_seeds']:.4f}"
            table.add_row(
                escape(one["variant"]),
                escape(one["against"]),
                one["languages"],
                *difference_cells(one),
                seeds,
            )
        out.print(table)
        print_line(
            f"p values are corrected for the {len(against)} comparisons (Holm): over items, and over seeds "
            "(paired t test; – with fewer than 3)"
        )


def show_methods(rows: Sequence[dict]) -> None:
    """Print each method's scores, then its cost to reach each level, over the seeds."""
    from experiments.summary import saving, summary

    names = {
        "alignment": "align.",
        "consistency": "consist.",
        "retrieval": "retr.",
        "fidelity": "fid.",
        "retention": "ret.",
    }
    methods = summary(rows)
    levels = list(dict.fromkeys(level for entry in methods for level in entry["reached"]))
    scores = Table(box=None, header_style="bold", pad_edge=False)
    costs = {name: Table(box=None, header_style="bold", pad_edge=False) for name in ("seconds", "flops")}
    for table, columns in (
        (scores, (*names.values(), "s", "TFLOP")),
        *((one, levels) for one in costs.values()),
    ):
        table.add_column("method", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
    for entry in methods:
        scores.add_row(
            entry["method"],
            *(_over_seeds(entry[name], 100) for name in names),
            f"{entry['seconds']['mean']:.0f}",
            f"{entry['flops']['mean'] / 1e12:.1f}",
        )
        for name, table in costs.items():
            table.add_row(entry["method"], *(_cost(entry, level, name) for level in levels))
    out.print(scores)
    for name, unit in (("seconds", "Seconds"), ("flops", "TFLOP")):
        about = "to reach an alignment accuracy, × ours; > n×: not within n times ours"
        out.print(f"\n{unit} {about}", style="bold")
        out.print(costs[name])
    seeds = max(entry["seeds"] for entry in methods)
    if seeds > 1:
        print_line(
            f"Means over {seeds} seeds; ± is a 95 % t interval, `to` the range with fewer than 3 seeds"
        )
    saved = saving(rows)
    for name, what in (("seconds", "seconds"), ("flops", "operations")):
        if saved[name]:
            print_line(
                f"To reach the best RL method's level: {_over_seeds(saved[name], 100, ' ')} % fewer {what}"
            )


def _cost(entry: dict, level: str, name: str) -> str:
    """Format the cost to reach a level and its ratio to ours, or the ratio that did not suffice."""
    scale, digits = (1e-12, 1) if name == "flops" else (1, 0)
    cost, ratio = entry["reached"].get(level), entry["times"].get(level)
    if cost is None:
        bound = entry["not_within"].get(level)
        return f"> {bound[name]:.1f}×" if bound else "—"
    mean, *interval = _over_seeds(cost[name], scale, digits=digits).split("\n")
    some = f"{cost[name]['n']} of {entry['seeds']}"
    text = mean + (f", {ratio[name]['mean']:.1f}×" if ratio else "")
    return "\n".join((text, *interval, *([some] if cost[name]["n"] < entry["seeds"] else [])))


def _over_seeds(value: dict | None, scale: float, between: str = "\n", digits: int = 1) -> str:
    """Format a mean, with its interval if there are several seeds."""
    if value is None:
        return "—"
    mean, low, high = (f"{scale * value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    if value["n"] == 1:
        return mean
    half = f"±{scale * (value['high'] - value['mean']):.{digits}f}"
    return mean + between + (half if value["interval"] == "t" else f"{low} to {high}")


def mean_cell(value: tuple[float, float | None] | None, scale: float) -> str:
    """Format a mean, with its spread if there are several seeds."""
    if value is None:
        return "—"
    mean, spread = value
    return f"{scale * mean:.1f}" + ("" if spread is None else f" ±{scale * spread:.1f}")
