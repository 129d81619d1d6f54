"""XGLUE's scores from free-text answers, parsed strictly, scored and written as in the official script.

An unreadable answer is never left out. It becomes a wrong prediction, also in the files: another label, tags
that cannot be right, or a relevance below all others. The number of unreadable answers is reported.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from isogloss.data.formats import xglue
from isogloss.data.formats.xglue import XglueRow
from isogloss.data.reading import normalise, read_answer, readable
from isogloss.evaluate import official
from isogloss.evaluate.items import Item, Official, over_languages
from isogloss.evaluate.suites.xglue_items import Made

MAIN: Final = {
    "NER": "span_f1",
    "POS": "span_precision",
    "MLQA": "f1",
    "WPR": "ndcg",
    "QG": "bleu",
    "NTG": "bleu",
}
"""The metric that the official script computes; accuracy for all other tasks."""


def score(made: Sequence[Made], answers: Mapping[str, Mapping[str, str]]) -> Official:
    """Score all tasks in all languages that have answers.

    Args:
        made: Every item with its task and rows.
        answers: By language and item ID.
    """
    scores: dict[str, dict[str, Any]] = {}
    more: dict[str, Any] = {"items": {}, "unreadable": {}}
    files: dict[str, str] = {}
    for task in dict.fromkeys(task for task, _, _ in made):
        values: dict[str, dict[str, float]] = {}
        for code in xglue.LANGUAGES[task]:
            asked = [(item, rows[code]) for one, item, rows in made if one == task and code in rows]
            asked = [(item, row) for item, row in asked if item.id in answers.get(code, {})]
            if not asked:
                continue
            predicted, unread = _predictions(task, code, asked, answers[code])
            rows = [row for _, row in asked]
            for metric, value in _metrics(task, code, rows, predicted).items():
                values.setdefault(metric, {})[code] = value
            more["items"].setdefault(task, {})[code] = len(asked)
            more["unreadable"].setdefault(task, {})[code] = unread
            files[f"{task}/{code}.prediction"] = _file(task, rows, predicted)
        if values:
            scores[task] = {metric: over_languages(by_code) for metric, by_code in values.items()}
    mains = {task: by_metric[MAIN.get(task, "accuracy")]["mean"] for task, by_metric in scores.items()}
    more["overall"] = sum(mains.values()) / len(mains) if mains else None
    documented = mains | ({"POS": scores["POS"]["token_accuracy"]["mean"]} if "POS" in scores else {})
    more["overall_documented"] = sum(documented.values()) / len(mains) if mains else None
    return Official(scores, more, files)


def read_tags(text: str, task: str, count: int) -> tuple[str, ...] | None:
    """Parse space-separated tags, one per token; None if their number is wrong or a tag is unknown."""
    tags = tuple(text.split())
    return tags if len(tags) == count and set(tags) <= set(xglue.TAGS[task]) else None


def _predictions(
    task: str, code: str, asked: Sequence[tuple[Item, XglueRow]], answers: Mapping[str, str]
) -> tuple[list[Any], int]:
    """Return a prediction for every row, and the number of unreadable answers."""
    read = [_read(task, code, item, row, answers[item.id]) for item, row in asked]
    wrong = _WRONG.get(task, _another_label if task in xglue.LABELS else lambda task, row: "")
    filled = [wrong(task, row) if p is None else p for p, (_, row) in zip(read, asked, strict=True)]
    return filled, sum(p is None for p in read)


def _read(task: str, code: str, item: Item, row: XglueRow, text: str) -> Any:
    if task in xglue.TAGS:
        return read_tags(text, task, len(row.tokens))
    if task in xglue.LABELS:
        label = read_answer(item, code, text)
        return float(label) if task == "WPR" and label is not None else label
    return " ".join(text.split()) if readable(normalise(text)) else None


def _another_label(task: str, row: XglueRow) -> str:
    return next(label for label in xglue.LABELS[task] if label != row.gold[0])


def _wrong_tags(task: str, row: XglueRow) -> tuple[str, ...]:
    """Return tags that are all wrong and never merge into one span, so that every token costs precision."""
    tags: list[str] = []
    for gold in row.gold:
        before = tags[-1] if tags else ""
        tags.append(next(tag for tag in ("X", "SYM", "INTJ") if tag not in (gold, before)))
    return tuple(tags)


_WRONG: Final[Mapping[str, Callable[[str, XglueRow], Any]]] = {
    "NER": lambda task, row: ("O",) * len(row.tokens),  # all entities are missed
    "POS": _wrong_tags,
    "WPR": lambda task, row: -1.0 - float(row.gold[0]),  # below every readable one, the most relevant last
}


def _metrics(task: str, code: str, rows: Sequence[XglueRow], predicted: Sequence[Any]) -> dict[str, float]:
    gold = [row.gold for row in rows]
    if task in xglue.TAGS:
        spans = official.span_precision if task == "POS" else official.span_f1
        return {
            MAIN[task]: spans(gold, predicted),
            "token_accuracy": official.token_accuracy(gold, predicted),
        }
    match task:
        case "MLQA":
            f1 = [official.answer_f1(g, p, code) for g, p in zip(gold, predicted, strict=True)]
            exact = [official.answer_match(g, p, code) for g, p in zip(gold, predicted, strict=True)]
            return {"f1": sum(f1) / len(f1), "exact_match": sum(exact) / len(exact)}
        case "WPR":
            queries = [row.parts["query"] for row in rows]
            return {"ndcg": official.ndcg(queries, [float(g[0]) for g in gold], predicted)}
        case "QG" | "NTG":
            return {"bleu": official.bleu([g[0] for g in gold], predicted)}
    return {"accuracy": official.accuracy([g[0] for g in gold], predicted)}


def _file(task: str, rows: Sequence[XglueRow], predicted: Sequence[Any]) -> str:
    """Format predictions for the official script: one per line; tags with a blank line between sentences."""
    if task == "MLQA":
        by_id = {row.id: text for row, text in zip(rows, predicted, strict=True)}
        return json.dumps(by_id, ensure_ascii=False) + "\n"
    if task in xglue.TAGS:
        return "\n\n".join("\n".join(tags) for tags in predicted) + "\n"
    return "".join(f"{one:g}\n" if isinstance(one, float) else f"{one}\n" for one in predicted)
