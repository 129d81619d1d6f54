"""Parallel text: sentences in English and another language, without any task.

A pair can serve as two instructions with the same meaning for the hidden-state term, as translation tasks in
both directions, or as topic classification; its text is a translation, not a label. Sentences that evaluation
retrieves or translates are left out.
Flow: files → unique pairs, without evaluation's sentences → drawn by seed → examples.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from isogloss.config import ParallelText
from isogloss.data.draw import draw
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import flores, massive
from isogloss.data.formats.lines import plain_or_gz
from isogloss.data.formats.tab import read_table
from isogloss.data.reading import normalise
from isogloss.data.tasks import sib200, translation
from isogloss.data.tasks.templates import parts_of
from isogloss.errors import DataError
from isogloss.languages import SOURCE, languages

FILES = {
    "tatoeba": "tatoeba/en-{code}.tsv",
    "tico19": "tico-19/all.en-{code}.tsv",
    "course_text": "course_text/en-{code}.tsv",
}
SPELLINGS = {"tico19": {"es": "es-LA"}}
"""Language codes that a data set spells differently."""


@dataclass(frozen=True)
class Pair:
    """A sentence in English and in another language."""

    id: str
    english: str
    code: str
    text: str


def pairs_for(
    sources: Sequence[ParallelText], root: Path | None, codes: Sequence[str], seed: int
) -> dict[str, list[Pair]]:
    """Return the pairs of each language, repeated as often as they are read; omit languages without pairs.

    Takes at most `items` pairs per language and source, drawn by seed, or `low_resource_factor` times as many
    for a low-resource language. If there are fewer, they are repeated in the order in which they were drawn.

    Raises:
        DataError: There is no data root, a source has none of the languages, or a file is damaged.
    """
    if not sources:
        return {}
    if root is None:
        raise DataError("parallel_text needs a data root; set data_root, --data-root or ISOGLOSS_DATA")
    found: dict[str, list[Pair]] = {}
    for source in sources:
        there = 0
        for code in codes:
            pairs = _usable(source.type, root, code, source.max_chars)
            there += len(pairs)
            drawn = draw(pairs, seed, key=lambda pair: pair.english, strata=lambda pair: (), power=1)
            factor = source.low_resource_factor if languages()[code].resource == "low" else 1.0
            reads = round(factor * min(source.items, len(drawn)))
            if reads:
                found.setdefault(code, []).extend(drawn[n % len(drawn)] for n in range(reads))
        if not there:
            raise DataError(f"parallel_text: {source.type} has none of {', '.join(codes)}; take it out", root)
    return found


def topic_examples(name: str, root: Path, codes: Sequence[str], max_chars: int) -> list[ParallelExample]:
    """Build topic-classification examples from a set's sentences, worded as for SIB-200, without labels.

    Raises:
        DataError: A file is damaged.
    """
    wordings = sib200.labels()
    there = [code for code in codes if code in wordings]
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for code in there:
        for pair in _usable(name, root, code, max_chars):
            found.setdefault(pair.english, (pair.id, {}))[1][code] = pair.text
    return [
        ParallelExample(
            f"topic-{id}",
            f"topic_{name}",
            {code: Turn(sib200.ask(code, text)) for code, text in {SOURCE: english, **texts}.items()},
            {code: wordings[code] for code in (SOURCE, *texts)},
        )
        for english, (id, texts) in found.items()
    ]


def translation_examples(pairs: Mapping[str, Sequence[Pair]]) -> list[ParallelExample]:
    """Build translation examples in both directions; in English, the sentence is its own translation."""
    return [
        ParallelExample(
            f"{pair.id}-{task}",
            task,
            {
                SOURCE: translation.turn(task, SOURCE, pair.english, pair.english),
                code: translation.turn(task, code, pair.english, pair.text),
            },
            own_response=True,
        )
        for code, those in pairs.items()
        for pair in those
        for task in translation.TASKS
    ]


def input_pairs(examples: Mapping[str, Sequence[ParallelExample]]) -> dict[str, list[Pair]]:
    """Return the inputs of instructions, without the task's wording, as sentence pairs by language.

    An utterance gives one pair, a premise and its hypothesis two; each distinct pair occurs once.
    Instructions whose template is unknown give none, nor do passages, which are not translations of each
    other.

    Args:
        examples: Examples by language, each with a turn in it and in English.
    """
    found: dict[str, dict[tuple[str, str], Pair]] = {}
    for code, those in examples.items():
        for example in those:
            if example.own_response:
                continue
            texts, english = (
                parts_of(example.task, one, example.turns[one].instruction) for one in (code, SOURCE)
            )
            for number, both in enumerate(zip(english, texts, strict=False), start=1):
                pair = Pair(f"{example.id}-input-{number}", both[0], code, both[1])
                found.setdefault(code, {}).setdefault(both, pair)
    return {code: list(pairs.values()) for code, pairs in found.items()}


@cache
def held_out(root: Path, code: str) -> frozenset[str]:
    """Return the normalised sentences of evaluation: all of FLORES and NTREX under the data root.

    Independent of the configured suites, so that the pairs do not depend on them.
    """
    found: set[str] = set()
    for one in (SOURCE, code):
        for split in ("dev", "devtest", "ntrex"):
            try:
                lines = (
                    flores.read_ntrex(root, [one]) if split == "ntrex" else flores.read(root, split, [one])
                )
            except DataError:  # missing: a suite that needs it raises
                continue
            found.update(map(normalise, lines[one]))
    return frozenset(found)


@cache
def _usable(name: str, root: Path, code: str, max_chars: int) -> tuple[Pair, ...]:
    """Return a set's pairs for training, in file order; cached, as a run needs them several times."""
    return tuple(
        pair
        for pair in _once(_read(name, root, code), held_out(root, code))
        if max(len(pair.english), len(pair.text)) <= max_chars
    )


def _once(pairs: Iterator[Pair], held_out: Collection[str]) -> Iterator[Pair]:
    """Yield pairs of two different, non-empty texts; skip repeated and held-out sentences."""
    seen: set[str] = set()
    for pair in pairs:
        both = normalise(pair.english), normalise(pair.text)
        if all(both) and both[0] != both[1] and not any(one in held_out or one in seen for one in both):
            seen.update(both)
            yield pair


def _read(name: str, root: Path, code: str) -> Iterator[Pair]:
    """Yield a set's pairs in a language, in file order; nothing if the set lacks the language."""
    if name == "massive":
        if code in massive.available(root):
            for row in massive.read(root, "train", [SOURCE, code]):
                yield Pair(f"massive-{code}-{row.id}", row.utt[SOURCE], code, row.utt[code])
        return
    spelling = SPELLINGS.get(name, {}).get(code, code)
    if path := plain_or_gz(root / FILES[name].format(code=spelling)):
        for number, row in enumerate(read_table(path, (SOURCE, spelling)), start=1):
            yield Pair(f"{name}-{code}-{number}", row[SOURCE], code, row[spelling])
