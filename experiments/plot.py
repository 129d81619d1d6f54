"""Plot alignment accuracy against cost, one line per method: two panels, FLOPs and seconds, as SVG.

Flow: rows of methods.json → each method's points → lines on logarithmic cost axes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from experiments.contest import OURS, REFERENCE

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter

COSTS = (("flops", 1e12, "operations, TFLOP"), ("seconds", 1.0, "seconds"))


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the plot; the reference model, which has no cost, is a dotted line.

    With several seeds, each has a pale line, and the means of their first, second, … points a bold one.

    Args:
        rows: Rows of `methods.json`: `method`, and `points` with costs and scores as fractions.
    """
    starts = [row["points"][0]["scores"]["alignment"] for row in rows if row["method"] == REFERENCE]
    rows = [row for row in rows if row["method"] != REFERENCE]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with pyplot.rc_context({"svg.hashsalt": OURS, "font.size": 9, "svg.fonttype": "none"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
        for panel, (name, unit, label) in zip(panels, COSTS, strict=True):
            for method, colour in zip(methods, pyplot.get_cmap("tab10").colors, strict=False):  # type: ignore[attr-defined]
                ways = [
                    [(point[name] / unit, 100 * point["scores"]["alignment"]) for point in row["points"]]
                    for row in rows
                    if row["method"] == method
                ]
                for way in ways if len(ways) > 1 else ():
                    panel.plot(*zip(*way, strict=True), color=colour, linewidth=0.8, alpha=0.4)
                # Seeds stopped by the time limit end at different steps.
                mean = [tuple(map(fmean, zip(*same, strict=True))) for same in zip(*ways, strict=False)]
                panel.plot(
                    *zip(*mean, strict=True),
                    marker="o",
                    markersize=3,
                    color=colour,
                    linewidth=2.4 if method == OURS else 1.2,
                    label=method,
                )
            for start in starts:
                panel.axhline(100 * start, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel(label)
            panel.grid(color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("alignment accuracy, %")
        figure.legend(
            handles=panels[0].get_legend_handles_labels()[0], loc="outside right center", frameon=False
        )
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)
