"""Evaluate a model: answers, sentence embeddings, and every measure with its interval.

Flow: reference model's English answers → answers per language → meanings → consistency, accuracy, fidelity;
sentences → embeddings → standardised → retrieval. Adapters are only used to set a language's path.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from isogloss.adapters.generate import whole_answers
from isogloss.config import Evaluate
from isogloss.data.examples import Turn
from isogloss.data.reading import normalise, read_answer
from isogloss.evaluate.estimates import estimates
from isogloss.evaluate.family import Closed, consistency_family
from isogloss.evaluate.fidelity import in_language, tells_languages_apart
from isogloss.evaluate.items import Item, SuiteData
from isogloss.evaluate.likelihood import log_probabilities
from isogloss.evaluate.metrics import agreement
from isogloss.evaluate.retrieval import Model, Retriever, adding_up, embed
from isogloss.evaluate.tasks import Mastery, corrected_for_chance, mastery, over_language_tasks
from isogloss.languages import SOURCE
from isogloss.progress import Progress

Rankings = dict[tuple[str, str], tuple[str, ...]]
"""By language and item ID, the options sorted from likeliest to least likely."""


@dataclass(frozen=True)
class Given:
    """Answers in the order of the requested items.

    Attributes:
        cut: Whether each answer was truncated at its token limit; None if an option was chosen by likelihood.
        rankings: Option rankings, for options chosen by likelihood.
    """

    texts: list[str]
    cut: list[bool | None]
    rankings: Rankings = field(default_factory=dict)


@dataclass
class Side:
    """One side of the comparison (before or after): scores and the answers behind them."""

    scores: dict[str, Any]
    hits: dict[str, dict[str, list[Any]]]
    """By measure and language, the score of each item or sentence; None where a measure is undefined."""
    ids: dict[str, dict[str, list[str]]]
    """By measure and language, `task/id` of each of those items; absent for sentences, which go by index."""
    by_task: dict[str, dict[str, dict[str, dict[str, float]]]]
    """Hits by measure, task, language and item ID."""
    kappa: dict[str, dict[str, float]]
    """By closed task and language, consistency corrected for chance (Cohen's κ)."""
    predictions: list[dict[str, Any]]
    unreadable: dict[str, int]
    """By language, the number of answers to closed questions that name no option; they count as wrong."""
    cut: dict[str, float]
    """By language, the share of generated answers that were truncated at their token limit."""
    rankings: Rankings

    @property
    def tasks(self) -> dict[str, dict[str, float]]:
        """Consistency by task and language."""
        return {
            task: {code: sum(hits.values()) / len(hits) for code, hits in by_language.items()}
            for task, by_language in self.by_task["consistency"].items()
        }


def english_answers(subject: Model, suite: SuiteData, settings: Evaluate, progress: Progress) -> Given:
    """Answer the English twins with the subject; with adapters, on the root path."""
    return _given(subject, suite, [(item, SOURCE) for item in twinned(suite)], settings, progress)


def rephrased_answers(
    subject: Model, suite: SuiteData, english: Sequence[str], settings: Evaluate, progress: Progress
) -> dict[str, list[bool]]:
    """Return, by task, whether answers to paraphrased English instructions mean the same as the originals.

    Args:
        english: The subject's answers to the original wordings, in the order of `twinned`.
    """
    asked, meant = [], []
    for item, text in zip(twinned(suite), english, strict=True):
        for wording in item.paraphrases:
            asked.append(replace(item, turns={SOURCE: Turn(wording, item.turns[SOURCE].response)}))
            meant.append(read_answer(item, SOURCE, text))
    given = _given(subject, suite, [(item, SOURCE) for item in asked], settings, progress)
    found: dict[str, list[bool]] = {}
    for item, first, text in zip(asked, meant, given.texts, strict=True):
        found.setdefault(item.task, []).extend(agreement([first], [read_answer(item, SOURCE, text)]))
    return found


def mastery_by_task(
    suite: SuiteData, english: Sequence[str], rephrased: Mapping[str, Sequence[bool]]
) -> dict[str, Mastery]:
    """Compute how well the reference model masters each task in English.

    Args:
        english: Its answers, in the order of `twinned`.
        rephrased: From `rephrased_answers`.
    """
    answered: dict[str, list[str]] = {}
    right: dict[str, list[bool | None]] = {}
    for item, text in zip(twinned(suite), english, strict=True):
        meaning = read_answer(item, SOURCE, text) if item.options is not None else None
        answered.setdefault(item.task, []).append(normalise(text) if meaning is None else f"={meaning}")
        known = "accuracy" in item.measures
        right.setdefault(item.task, []).append(is_right(item, SOURCE, text) if known else None)
    return {task: mastery(texts, right[task], rephrased.get(task, ())) for task, texts in answered.items()}


def twinned(suite: SuiteData) -> list[Item]:
    """Return the items that have an English instruction."""
    return [item for item in suite.items if SOURCE in item.turns]


def _given(
    subject: Model,
    suite: SuiteData,
    asked: Sequence[tuple[Item, str]],
    settings: Evaluate,
    progress: Progress,
) -> Given:
    """Answer every item in its language: by generation, or with the likeliest option's wording."""
    options = [item.options[code] if item.options else {} for item, code in asked]
    chosen = [n for n, one in enumerate(options) if one and suite.name in settings.likelihood]
    free = sorted(set(range(len(asked))) - set(chosen))
    found = Given([""] * len(asked), [None] * len(asked))

    def of(numbers: Sequence[int]) -> dict[str, Any]:
        return {
            "instructions": [asked[n][0].turns[asked[n][1]].instruction for n in numbers],
            "languages": [asked[n][1] for n in numbers],
            "adapters": subject.adapters,
            "batch": settings.batch_size,
            "progress": progress,
        }

    limits = [max(settings.max_new_tokens, item.longest or 0) for item, _ in asked]
    for limit in sorted({limits[n] for n in free}):
        numbers = [n for n in free if limits[n] == limit]
        written = whole_answers(subject.model, subject.tokenizer, **of(numbers), max_new_tokens=limit)
        for number, one in zip(numbers, written, strict=True):
            found.texts[number], found.cut[number] = one.text, not one.ended
    if chosen:
        scores = log_probabilities(
            subject.model, subject.tokenizer, **of(chosen), options=[options[n] for n in chosen]
        )
        for number, by_option in zip(chosen, scores, strict=True):
            ranking = tuple(sorted(by_option, key=lambda key: -by_option[key]))
            found.texts[number] = options[number][ranking[0]]
            found.rankings[asked[number][1], asked[number][0].id] = ranking
    return found


def evaluate_side(
    subject: Model,
    suite: SuiteData,
    languages: Sequence[str],
    english: Sequence[str],
    retriever: Retriever | None,
    settings: Evaluate,
    seed: int,
    progress: Progress,
) -> Side:
    """Compute every measure of one side, per language and averaged.

    Args:
        english: The reference model's English answers, in the order of `twinned`.
        retriever: Compares the suite's sentences; None if it has none.
    """
    items = list(suite.items)
    asked = [(item, code) for code in languages for item in items if code in item.turns]
    given = _given(subject, suite, asked, settings, progress)
    reference = {
        item.id: (text, read_answer(item, SOURCE, text))
        for item, text in zip(twinned(suite), english, strict=True)
    }
    values: dict[str, dict[str, list[Any]]] = {"consistency": {}, "accuracy": {}, "fidelity": {}}
    ids: dict[str, dict[str, list[str]]] = {name: {} for name in values}
    by_task: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in values}
    meanings: dict[str, dict[str, list[tuple[str | None, str | None]]]] = {}
    predictions, unreadable = [], {}
    for (item, code), text, cut in zip(asked, given.texts, given.cut, strict=True):
        english_text, english_meaning = reference.get(item.id, (None, None))
        meaning = read_answer(item, code, text)
        consistent = agreement([english_meaning], [meaning])[0] if item.id in reference else None
        right = is_right(item, code, text)
        if item.options is not None:
            unreadable[code] = unreadable.get(code, 0) + (meaning is None)
        # An option's wording is always in its language, so fidelity would be trivial.
        chosen = item.options is not None and suite.name in settings.likelihood
        in_target = None if chosen else _in_target(item, code, text, candidates=(SOURCE, *languages))
        for name, value in (("consistency", consistent), ("accuracy", right), ("fidelity", in_target)):
            if name not in item.measures or (name == "consistency" and value is None):
                continue
            values[name].setdefault(code, []).append(value)
            ids[name].setdefault(code, []).append(f"{item.task}/{item.id}")
            if value is not None:
                hits = by_task[name].setdefault(item.task, {}).setdefault(code, {})
                hits[item.id] = float(value)
        if consistent is not None and "consistency" in item.measures and item.options is not None:
            pairs = meanings.setdefault(item.task, {}).setdefault(code, [])
            pairs.append((english_meaning, meaning))
        turn, twin = item.turns[code], item.turns.get(SOURCE)
        predictions.append(
            {
                "id": item.id,
                "task": item.task,
                "language": code,
                "instruction": turn.instruction,
                "english_instruction": twin and twin.instruction,
                "reference": turn.response,
                "english_answer": english_text,
                "answer": text,
                "consistent": consistent,
                "correct": right if "accuracy" in item.measures else None,
                "answer_language": item.answer_language.get(code, code),
                "in_language": in_target,
                "cut": cut,
            }
        )
    judged = {
        code: [item.task for item, one in asked if one == code and "fidelity" in item.measures]
        for code in values["fidelity"]
    }
    _leave_out_thin(values["fidelity"], judged, by_task["fidelity"])
    if retriever is not None:
        _add_retrieval(values, subject, suite, languages, retriever, settings, progress)
    kappa = corrected_for_chance(meanings)
    scores = estimates(values, ids, seed)
    if kappa:
        scores["consistency_kappa"] = over_language_tasks(kappa)
    return Side(
        scores=scores,
        hits={name: by_language for name, by_language in values.items() if by_language},
        ids={name: by_language for name, by_language in ids.items() if by_language},
        by_task=by_task,
        kappa=kappa,
        predictions=predictions,
        unreadable=unreadable,
        cut=cut_shares((code for _, code in asked), given.cut),
        rankings=given.rankings,
    )


TOLD: Final = 0.1
"""Minimum share of a task's answers whose language is decidable for its fidelity to be reported."""


def _leave_out_thin(
    values: Mapping[str, list[Any]], tasks: Mapping[str, Sequence[str]], by_task: dict[str, dict[str, Any]]
) -> None:
    """Remove, in place, the fidelity of a task in a language where it would rest on a handful of answers.

    Args:
        values: By language, whether each answer is in it; None where undecidable.
        tasks: By language, the task of each answer.
        by_task: The decidable values by task, language and item.
    """
    for code, asked_of in tasks.items():
        asked = Counter(asked_of)
        thin = {
            task for task, count in asked.items() if len(by_task.get(task, {}).get(code, {})) < TOLD * count
        }
        for place, task in enumerate(asked_of):
            if task in thin:
                values[code][place] = None
        for task in thin:
            by_task.get(task, {}).pop(code, None)


def cut_shares(codes: Iterable[str], cut: Sequence[bool | None]) -> dict[str, float]:
    """Return, by language, the share of generated answers that were truncated at their token limit."""
    found: dict[str, list[bool]] = {}
    for code, one in zip(codes, cut, strict=True):
        if one is not None:
            found.setdefault(code, []).append(one)
    return {code: sum(row) / len(row) for code, row in found.items()}


def english_right(suite: SuiteData, given: Sequence[str]) -> list[bool]:
    """Return which English answers are right, for items with a known gold."""
    return [hit for hits in english_hits(suite, given).values() for hit in hits.values()]


def english_hits(suite: SuiteData, given: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Return by task and item which English answers are right, for items with a known gold."""
    found: dict[str, dict[str, bool]] = {}
    for item, text in zip(twinned(suite), given, strict=True):
        if "accuracy" in item.measures:
            found.setdefault(item.task, {})[item.id] = is_right(item, SOURCE, text)
    return found


def is_right(item: Item, code: str, text: str) -> bool:
    """Whether an answer has the gold meaning; False if either is unreadable."""
    return agreement([_gold(item, code)], [read_answer(item, code, text)])[0]


def _in_target(item: Item, code: str, text: str, *, candidates: Sequence[str]) -> bool | None:
    """Whether an answer is in the requested language; None if undecidable."""
    target, known = item.answer_language.get(code, code), _known(item)
    if not tells_languages_apart(target, candidates=candidates, known=known):
        return None
    if item.options is None:  # a right answer in another language ("1990") may be right in this one too
        own = set(map(normalise, known.get(target, ())))
        known = {one: [text for text in texts if normalise(text) in own] for one, texts in known.items()}
    return in_language(text, target, candidates=candidates, known=known)


def family(
    suite: SuiteData, english: Sequence[str], rankings: Rankings, side: Side, seed: int
) -> dict[str, Any]:
    """Compute the consistency family on one side's closed questions, including its own English answers.

    Args:
        english: The side's own answers to the English twins, in the order of `twinned`.
        rankings: Their option rankings.
    """
    items = {item.id: item for item in suite.items if item.options is not None}
    given = [(SOURCE, item.id, text) for item, text in zip(twinned(suite), english, strict=True)]
    given += [(row["language"], row["id"], row["answer"]) for row in side.predictions]
    ranked, answered = rankings | side.rankings, {}
    for code, id, text in given:
        if id in items:
            meaning, right = read_answer(items[id], code, text), is_right(items[id], code, text)
            answered.setdefault(code, {})[id] = Closed(meaning, right, ranked.get((code, id)))
    return consistency_family(answered, seed=seed)


def _gold(item: Item, code: str) -> str | None:
    if item.options is not None:
        return item.gold
    response = item.turns[code].response
    return None if response is None else read_answer(item, code, response)


def _known(item: Item) -> dict[str, list[str]]:
    """Return the item's options and reference responses, by the language they are in."""
    known = {code: list(options.values()) for code, options in (item.options or {}).items()}
    for code, turn in item.turns.items():
        if turn.response is not None:
            known.setdefault(item.answer_language.get(code, code), []).append(turn.response)
    return known


def _add_retrieval(
    values: dict[str, dict[str, Any]],
    subject: Model,
    suite: SuiteData,
    languages: Sequence[str],
    retriever: Retriever,
    settings: Evaluate,
    progress: Progress,
) -> None:
    codes = [code for code in languages if code in suite.sentences]
    done = adding_up(progress, sum(len(suite.sentences[code]) for code in codes))
    layers = sorted({retriever.layer, retriever.raw_layer})
    for code in codes:
        texts = suite.sentences[code]
        vectors = embed(subject, texts, code, layers, settings.batch_size, done)
        found, raw = retriever.compare(code, suite.sentences[SOURCE], texts, vectors)
        margin = (found.margin_forward.float() + found.margin_backward.float()) / 2
        for name, hits in (
            ("retrieval", found.scores),
            ("retrieval_raw", raw.scores),
            ("retrieval_strict", found.strict.float().tolist()),
            ("retrieval_margin", margin.tolist()),
        ):
            values.setdefault(name, {})[code] = hits
