"""From a model to scores: answers, sentence embeddings, and every measure with its interval.

Flow: M's English answers → answers per language → meanings → consistency, accuracy, fidelity;
sentences → embeddings → retrieval. Knows carriers only as something that has a path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss.config import Evaluate
from isogloss.data.chat import pad
from isogloss.data.reading import read_answer
from isogloss.evaluate.family import Closed, consistency_family
from isogloss.evaluate.fidelity import in_language
from isogloss.evaluate.items import Item, SuiteData
from isogloss.evaluate.likelihood import log_probabilities
from isogloss.evaluate.metrics import agreement, retrieve, spread
from isogloss.evaluate.statistics import (
    Estimate,
    bootstrap_alignment,
    bootstrap_apart,
    bootstrap_mean,
    bootstrap_over_languages,
    mean_over_languages,
)
from isogloss.generate import answers, in_batches
from isogloss.languages import SOURCE
from isogloss.model import capture, last_hidden, layers_of, mean_pool, most_tokens, pad_id
from isogloss.tree.carrier import Carrier

Progress = Callable[[int, int], None]
Rankings = dict[tuple[str, str], tuple[str, ...]]
"""By language and item id, the options from the likeliest down."""
PER_LANGUAGE = (
    "alignment",
    "consistency",
    "retrieval",
    "retrieval_strict",
    "retrieval_margin",
    "accuracy",
    "fidelity",
)


@dataclass(frozen=True)
class Model:
    """What answers: the reference model alone, or with its carriers on each language's path."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    carrier: Carrier | None = None


@dataclass
class Side:
    """One side of the comparison: scores and the answers behind them."""

    scores: dict[str, Any]
    hits: dict[str, dict[str, list[bool]]]
    """By measure and language, which items or sentences were right."""
    tasks: dict[str, dict[str, float]]
    predictions: list[dict[str, Any]]
    unreadable: dict[str, int]
    """By language, how many answers to closed questions name no option; they count as wrong."""
    rankings: Rankings


@torch.no_grad()
def embed(
    subject: Model, texts: Sequence[str], language: str, layers: Sequence[int], batch: int
) -> dict[int, Float[Tensor, "texts hidden"]]:
    """Mean-pooled states of some decoder layers for bare sentences, read on a language's path."""
    model, tokenizer, carrier = subject.model, subject.tokenizer, subject.carrier
    device = next(model.parameters()).device
    encoded = [tokenizer(text, add_special_tokens=True)["input_ids"] for text in texts]
    order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(texts) for layer in layers}
    for chosen in in_batches(order, encoded, batch, most_tokens(model)):
        ids, mask = (t.to(device) for t in pad([list(encoded[i]) for i in chosen], pad_id(tokenizer)))
        if carrier is not None:
            carrier.set_path([language] * len(chosen))
        captured = {layer: capture(model, layer) for layer in layers}
        states = {layer: context.__enter__() for layer, context in captured.items()}
        last_hidden(model, ids, mask)
        for context in captured.values():
            context.__exit__(None, None, None)
        for layer in layers:
            for number, vector in zip(chosen, mean_pool(states[layer][0], mask), strict=True):
                found[layer][number] = vector
    if carrier is not None:
        carrier.off()
    return {layer: torch.stack(vectors) for layer, vectors in found.items()}


def choose_layer(
    subject: Model,
    sentences: Mapping[str, Sequence[str]],
    batch: int,
    progress: Progress = lambda done, of: None,
) -> int:
    """The decoder layer at which the reference model's own retrieval, mean over languages, is best.

    The sentences must not be those that are reported.
    """
    layers = range(1, len(layers_of(subject.model)) + 1)
    english = embed(subject, sentences[SOURCE], SOURCE, layers, batch)
    totals = dict.fromkeys(layers, 0.0)
    for number, (code, texts) in enumerate(sentences.items(), start=1):
        progress(number, len(sentences))
        if code != SOURCE:
            other = embed(subject, texts, code, layers, batch)
            for layer in layers:
                totals[layer] += retrieve(english[layer], other[layer]).accuracy
    return max(totals, key=lambda layer: totals[layer])


def english_answers(
    subject: Model,
    suite: SuiteData,
    settings: Evaluate,
    progress: Progress,
    rankings: Rankings | None = None,
) -> list[str]:
    """The subject's own answers to the English twins; with a carrier, through the root.

    Args:
        rankings: Takes the rankings of the options, where likelihood gives them.
    """
    asked = [(item, SOURCE) for item in twinned(suite)]
    return _given(subject, suite, asked, settings, progress, {} if rankings is None else rankings)


def twinned(suite: SuiteData) -> list[Item]:
    """The items that are there in English."""
    return [item for item in suite.items if SOURCE in item.turns]


def _given(
    subject: Model,
    suite: SuiteData,
    asked: Sequence[tuple[Item, str]],
    settings: Evaluate,
    progress: Progress,
    rankings: Rankings,
) -> list[str]:
    """An answer to every item in its language: generated, or the likeliest option's wording."""
    options = [item.options[code] if item.options else {} for item, code in asked]
    chosen = [n for n, one in enumerate(options) if one and suite.name in settings.likelihood]
    free = sorted(set(range(len(asked))) - set(chosen))
    found = [""] * len(asked)

    def of(numbers: Sequence[int]) -> dict[str, Any]:
        return {
            "instructions": [asked[n][0].turns[asked[n][1]].instruction for n in numbers],
            "languages": [asked[n][1] for n in numbers],
            "carrier": subject.carrier, "batch": settings.batch, "progress": progress,
        }  # fmt: skip

    limits = [max(settings.max_new_tokens, item.longest or 0) for item, _ in asked]
    for limit in sorted({limits[n] for n in free}):
        numbers = [n for n in free if limits[n] == limit]
        texts = answers(subject.model, subject.tokenizer, **of(numbers), max_new_tokens=limit)
        for number, text in zip(numbers, texts, strict=True):
            found[number] = text
    if chosen:
        scores = log_probabilities(
            subject.model, subject.tokenizer, **of(chosen), options=[options[n] for n in chosen]
        )
        for number, one in zip(chosen, scores, strict=True):
            ranking = tuple(sorted(one, key=lambda key: -one[key]))
            found[number] = options[number][ranking[0]]
            rankings[asked[number][1], asked[number][0].id] = ranking
    return found


def evaluate_side(
    subject: Model,
    suite: SuiteData,
    languages: Sequence[str],
    english: Sequence[str],
    english_vectors: Float[Tensor, "texts hidden"] | None,
    layer: int,
    settings: Evaluate,
    seed: int,
    progress: Progress,
) -> Side:
    """Every measure of one side, per language and on average.

    Args:
        english: The reference model's English answers, in the order of the items.
        english_vectors: Its embeddings of the suite's English sentences, None where it has none.
    """
    items = list(suite.items)
    asked = [(item, code) for code in languages for item in items if code in item.turns]
    rankings: Rankings = {}
    given = _given(subject, suite, asked, settings, progress, rankings)
    reference = {
        item.id: (text, read_answer(item, SOURCE, text))
        for item, text in zip(twinned(suite), english, strict=True)
    }
    values: dict[str, dict[str, list[bool]]] = {"consistency": {}, "accuracy": {}, "fidelity": {}}
    tasks: dict[str, dict[str, list[bool]]] = {}
    predictions, unreadable = [], {}
    for (item, code), text in zip(asked, given, strict=True):
        english_text, english_meaning = reference.get(item.id, (None, None))
        meaning = read_answer(item, code, text)
        consistent = agreement([english_meaning], [meaning])[0] if item.id in reference else None
        right = meaning is not None and meaning == _gold(item, code)
        if item.options is not None:
            unreadable[code] = unreadable.get(code, 0) + (meaning is None)
        target = item.answer_language.get(code, code)
        told = in_language(text, target, candidates=(SOURCE, *languages), known=_known(item))
        # An option is in its language.
        chosen = item.options is not None and suite.name in settings.likelihood
        for name, value in (("consistency", consistent), ("accuracy", right), ("fidelity", told)):
            if name in item.measures and value is not None and not (name == "fidelity" and chosen):
                values[name].setdefault(code, []).append(value)
        if consistent is not None and "consistency" in item.measures:
            tasks.setdefault(item.task, {}).setdefault(code, []).append(consistent)
        turn, twin = item.turns[code], item.turns.get(SOURCE)
        predictions.append(
            {
                "id": item.id, "task": item.task, "language": code, "instruction": turn.instruction,
                "english_instruction": twin and twin.instruction, "reference": turn.response,
                "english_answer": english_text, "answer": text,
                "consistent": consistent, "correct": right, "in_language": told,
            }
        )  # fmt: skip
    if english_vectors is not None:
        for number, code in enumerate(languages, start=1):
            progress(number, len(languages))
            if code in suite.sentences:
                vectors = embed(subject, suite.sentences[code], code, [layer], settings.batch)[layer]
                _add_retrieval(values, code, english_vectors, vectors)
    means = {
        task: {code: sum(hits) / len(hits) for code, hits in found.items()} for task, found in tasks.items()
    }
    return Side(_estimates(values, seed), values, means, predictions, unreadable, rankings)


def english_accuracy(subject: Model, suite: SuiteData, settings: Evaluate, progress: Progress) -> list[bool]:
    """Which English items are right, with the root carrier on where there is a carrier."""
    given = english_answers(subject, suite, settings, progress)
    return english_right(suite, given)


def english_right(suite: SuiteData, given: Sequence[str]) -> list[bool]:
    """Which of the reference model's English answers are right."""
    return [
        read_answer(item, SOURCE, text) == _gold(item, SOURCE)
        for item, text in zip(twinned(suite), given, strict=True)
        if "accuracy" in item.measures
    ]


def family(
    suite: SuiteData, english: Sequence[str], rankings: Rankings, side: Side, seed: int
) -> dict[str, Any]:
    """The consistency family of one side's closed questions, its English answers among them.

    Args:
        english: The side's own answers to the English twins, and their rankings.
    """
    items = {item.id: item for item in suite.items if item.options is not None}
    given = [(SOURCE, item.id, text) for item, text in zip(twinned(suite), english, strict=True)]
    given += [(row["language"], row["id"], row["answer"]) for row in side.predictions]
    ranked, answered = rankings | side.rankings, {}
    for code, id, text in given:
        if id in items:
            meaning = read_answer(items[id], code, text)
            right = meaning is not None and meaning == items[id].gold
            answered.setdefault(code, {})[id] = Closed(meaning, right, ranked.get((code, id)))
    return consistency_family(answered, seed=seed)


def retention(before: Sequence[bool], after: Sequence[bool], seed: int) -> dict[str, Any]:
    """English accuracy with the root on minus the reference model's, as a measure of scores.json."""
    change = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    estimate = bootstrap_mean(change, seed=seed)
    return _measure(estimate, {SOURCE: estimate})


def spreads(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Worst language and standard deviation over languages, per measure."""
    found = {}
    for name in ("alignment", "consistency", "retrieval"):
        if name in scores:
            one = spread({code: entry["value"] for code, entry in scores[name]["languages"].items()})
            found[name] = {"worst": [one.worst, one.lowest], "sd": one.deviation}
    return found


def _gold(item: Item, code: str) -> str | None:
    if item.options is not None:
        return item.gold
    response = item.turns[code].response
    return None if response is None else read_answer(item, code, response)


def _known(item: Item) -> dict[str, list[str]]:
    """Wordings whose language is known: what an answer of this item may say."""
    known = {code: list(options.values()) for code, options in (item.options or {}).items()}
    for code, turn in item.turns.items():
        if turn.response is not None:
            known.setdefault(item.answer_language.get(code, code), []).append(turn.response)
    return known


def _add_retrieval(values: dict[str, dict[str, Any]], code: str, english: Tensor, other: Tensor) -> None:
    found = retrieve(english, other)
    both = (found.forward.float() + found.backward.float()) / 2
    margin = (found.margin_forward.float() + found.margin_backward.float()) / 2
    strict = found.forward & found.backward
    for name, hits in (
        ("retrieval", both),
        ("retrieval_strict", strict.float()),
        ("retrieval_margin", margin),
    ):
        values.setdefault(name, {})[code] = hits.tolist()


def _estimates(
    values: Mapping[str, Mapping[str, Sequence[float] | Sequence[bool]]], seed: int
) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name, by_language in values.items():
        if by_language:
            each = {code: bootstrap_mean(hits, seed=seed) for code, hits in by_language.items()}
            scores[name] = _measure(_mean_of(by_language, seed), each)
    consistency, retrieval = values.get("consistency", {}), values.get("retrieval", {})
    shared = [code for code in consistency if code in retrieval]
    if shared:
        each = {code: bootstrap_alignment(consistency[code], retrieval[code], seed=seed) for code in shared}
        sides = [{code: values[code] for code in shared} for values in (consistency, retrieval)]
        if all(len({len(hits) for hits in side.values()}) == 1 for side in sides):
            mean = bootstrap_alignment(*map(mean_over_languages, sides), seed=seed)
        else:
            mean = bootstrap_apart([hits for side in sides for hits in side.values()], seed=seed)
        scores["alignment"] = _measure(mean, each)
    return {name: scores[name] for name in PER_LANGUAGE if name in scores}


def _mean_of(by_language: Mapping[str, Sequence[float] | Sequence[bool]], seed: int) -> Estimate:
    """Over languages: drawn jointly where all have as many items, else each by itself."""
    if len({len(hits) for hits in by_language.values()}) == 1:
        return bootstrap_over_languages(by_language, seed=seed)
    return bootstrap_apart(list(by_language.values()), seed=seed)


def _measure(mean: Estimate, each: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "mean": mean.value, "low": mean.low, "high": mean.high,
        "languages": {code: asdict(estimate) for code, estimate in each.items()},
    }  # fmt: skip
