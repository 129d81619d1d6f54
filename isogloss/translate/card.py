"""The data card of a translated file, in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.records import on_hub
from isogloss.languages import SOURCE, languages
from isogloss.translate.filter import CHECKS


def card(report: Mapping[str, Any], made: Sequence[ParallelExample], codes: Sequence[str]) -> str:
    """Return the data card: the data's origin, counts of kept and dropped items, and a few examples."""
    table = languages()
    what = "instructions and responses" if report["responses"] else "instructions"
    licence = report.get("license")
    front = {"language": [SOURCE, *codes]} | ({"license": licence} if licence else {})
    lines = [
        *("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip()),
        *("---", "# Translated instructions", ""),
        f"English {what} from `{_name(report.get('data', 'a file'))}`,",
        f"machine-translated by {report['translator']}.",
        *_read_by(report["reviewed"]),
        "",
        f"Licence: {licence}."
        if licence
        else "Licence: unknown. The terms of the English data and of the translator apply to this file;\n"
        "state both before you share it.",
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
        f"{spent['seconds']:.0f} seconds of translation.",
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
        return ["No speaker has reviewed them."]
    table = languages()
    return [
        f"A speaker of {table[code].name} has reviewed {sum(found.values())} of them: "
        f"{found['right']} right, {found['corrected']} corrected, {found['wrong']} left out."
        for code, found in reviewed.items()
    ]


def _filtered_by(report: Mapping[str, Any]) -> list[str]:
    always = [name for name in CHECKS if name not in ("likeness", "round trip")]
    lines = [f"A pair is dropped if any of these checks fails: {', '.join(always)}."]
    if base := report.get("likeness"):
        lines.append(_compared_by(base, report["compared"], report["languages"]))
    if report["round_trip"]:
        least = report["round_trip"]["least"]
        lines.append(
            f"It is also dropped if its back-translation scores below chrF {least:g} against the English."
        )
    return lines


def _compared_by(base: str, compared: Sequence[str], codes: Sequence[str]) -> str:
    names = [languages()[code].name for code in codes if code in compared]
    if not names:
        return f"No pair was compared by {base}: no language has a limit for it and enough pairs."
    only = "" if len(names) == len(codes) else "only "
    return f"It is also dropped if its two sides are too dissimilar for {base} ({only}in {', '.join(names)})."


def _name(data: str) -> str:
    """Return a Hub dataset's name as is, but only the last part of a local path, as the card is published."""
    return data if on_hub(Path(data)) else Path(data).name


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 120 else words[:119] + "…"
