"""The data card of a translated file, in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.records import on_hub
from isogloss.languages import SOURCE, languages
from isogloss.translate.filter import CHECKS


def card(report: Mapping[str, Any], made: Sequence[ParallelExample], codes: Sequence[str]) -> str:
    """Where the data come from, what was left out, and a few examples."""
    table = languages()
    what = "instructions and responses" if report["responses"] else "instructions"
    licence = report.get("license")
    lines = [
        *("---", "language:", *(f"- {code}" for code in (SOURCE, *codes))),
        *([f"license: {licence}"] if licence else []),
        *("---", "# Translated instructions", ""),
        f"English {what} from `{_name(report.get('data', 'a file'))}`,",
        f"translated by {report['translator']}, a machine.",
        *_read_by(report["reviewed"]),
        "",
        f"Licence: {licence}."
        if licence
        else "Licence: not known here. The terms of the English data and those of the translator hold for\n"
        "this file; name both before you pass it on.",
        "",
        "## Counts",
        "",
        f"| language | kept of {report['items']} | left out |",
        "| --- | --- | --- |",
    ]
    for code in codes:
        whys = ", ".join(f"{why} {count}" for why, count in report["dropped"][code].items()) or "none"
        lines.append(f"| {table[code].name} | {report['kept'][code]} | {whys} |")
    lines += ["", "## Filter", "", *_filtered_by(report)]
    spent = report["spent"]
    lines += [
        *("", "## Cost", ""),
        f"{spent['requests']} requests, {spent['tokens_read']} tokens read,",
        f"{spent['tokens_written']} tokens written,",
        f"{spent['seconds']:.0f} seconds of answering.",
    ]
    for code in codes:
        shown = [one for one in made if code in one.turns and SOURCE in one.turns][:3]
        lines += ["", f"## {table[code].name}", ""]
        for one in shown:
            for part in ("instruction", "response"):
                english, own = (getattr(one.turns[side], part) for side in (SOURCE, code))
                if english is not None and own is not None:
                    lines.append(f"- {_short(english)} → {_short(own)}")
    return "\n".join(lines) + "\n"


def _read_by(reviewed: Mapping[str, Mapping[str, int]]) -> list[str]:
    if not reviewed:
        return ["No speaker has read them unless somebody says so here."]
    table = languages()
    return [
        f"A speaker of {table[code].name} has read {sum(found.values())} of them: {found['right']} right, "
        f"{found['corrected']} corrected, {found['wrong']} left out."
        for code, found in reviewed.items()
    ]


def _filtered_by(report: Mapping[str, Any]) -> list[str]:
    always = [name for name in CHECKS if name not in ("likeness", "round trip")]
    lines = [f"A pair is left out for any of: {', '.join(always)}."]
    if report.get("likeness"):
        lines.append(f"Also where both sides are not alike to {report['likeness']}.")
    if report["round_trip"]:
        least = report["round_trip"]["least"]
        lines.append(
            f"Also where less than chrF {least:g} comes back when the translator translates it back."
        )
    return lines


def _name(data: str) -> str:
    """A data set of the hub as it is, of a path its last part: a card goes to others."""
    return data if on_hub(Path(data)) else Path(data).name


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 120 else words[:119] + "…"
