"""SQuAD's layout, used by MLQA and XQuAD: paragraphs with questions and their answer spans."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isogloss.data.formats.lines import is_text, read_lines
from isogloss.data.text import canonical_values
from isogloss.errors import DataError


@dataclass(frozen=True)
class Question:
    """A question about a context, with every correct answer and the article's title."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    article: str = ""


def read(path: Path) -> dict[str, Question]:
    """Return the questions by ID, in file order.

    Raises:
        DataError: The file is not JSON, an entry is malformed, an ID occurs twice, or an answer does not
            occur in its context.
    """
    text = "\n".join(read_lines(path))
    try:
        whole = canonical_values(json.loads(text))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError("not JSON; the file must be one object in SQuAD's layout", path, line) from None
    found: dict[str, Question] = {}
    for a, article in enumerate(_list(whole, "data", "the file", path)):
        where = f"data[{a}]"
        title = article.get("title") if isinstance(article, dict) else None
        title = title if is_text(title) else ""
        for p, paragraph in enumerate(_list(article, "paragraphs", where, path)):
            inside = f"{where}.paragraphs[{p}]"
            context = _text(paragraph, "context", inside, path)
            for q, entry in enumerate(_list(paragraph, "qas", inside, path)):
                one = _question(entry, context, title, f"{inside}.qas[{q}]", path)
                if one.id in found:
                    raise DataError(f"id {one.id!r} occurs twice; keep one question of each", path)
                found[one.id] = one
    if not found:
        raise DataError("the file has no question; use a file in SQuAD's layout", path)
    return found


def _question(entry: Any, context: str, title: str, where: str, path: Path) -> Question:
    id, asked = _text(entry, "id", where, path), _text(entry, "question", where, path)
    answers = []
    for number, answer in enumerate(_list(entry, "answers", where, path)):
        said = _text(answer, "text", f"{where}.answers[{number}]", path)
        if said not in context:
            raise DataError(f"{where}: the answer {said!r} does not occur in its context", path)
        answers.append(said)
    if not answers:
        raise DataError(f"{where}: the question has no answer; every question needs one", path)
    return Question(id, context, asked, tuple(dict.fromkeys(answers)), title)


def _list(holder: Any, key: str, where: str, path: Path) -> list[Any]:
    if not isinstance(holder, dict) or not isinstance(holder.get(key), list):
        raise DataError(f"{where} has no list {key!r}; the file must be in SQuAD's layout", path)
    return holder[key]


def _text(holder: Any, key: str, where: str, path: Path) -> str:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not is_text(value) or not value.strip():
        raise DataError(f"{where} has no text {key!r}; the file must be in SQuAD's layout", path)
    return value
