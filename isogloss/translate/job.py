"""Turn an English file into a parallel one: translate what is missing and drop what fails the filter.

The folder FILE.translate next to FILE.jsonl contains `answers.jsonl`, an append-only journal from which a
killed job resumes; `dropped.jsonl`, every dropped row with its reason; `report.json`; and `README.md`, the
data card. FILE.jsonl is written in one go at the end, as are the optional outputs: FILE.parquet and the
review files for speakers.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from isogloss.data.draw import FIXED, in_draw_order
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import parallel_jsonl
from isogloss.errors import ConfigError, DataError
from isogloss.files import Journal, locked, write_json, write_lines, write_text
from isogloss.languages import SOURCE
from isogloss.progress import Bar
from isogloss.translate import answers, review
from isogloss.translate.answers import Answer, Spent, Translator, Wanted, key_of
from isogloss.translate.card import card
from isogloss.translate.filter import Reason, limits_of, reasons
from isogloss.translate.review import Mark, Reading

Likeness = Callable[[Sequence[str], Sequence[str], str], Sequence[float]]
"""Maps English texts, their translations and the language's code to one similarity score per pair."""


@dataclass(frozen=True)
class Dropped:
    """A dropped or missing translation; `reason` is the first check that it fails."""

    id: str
    language: str
    part: str
    english: str
    text: str | None
    reason: str
    details: list[str]


@dataclass
class Done:
    """Result of a job.

    Attributes:
        kept: Number of translated items in the parallel file, by language.
        dropped: Number of dropped items, by language and reason.
        made: All items as written to the parallel file.
        readings: Kept translations without a valid mark, by language, in draw order.
        heeded: Marks that apply to these translations, by language.
        compared: Languages whose pairs were also filtered by their similarity to a model.
        new: Cost of this call; `spent` is the cost of all answers used, including cached ones.
    """

    kept: dict[str, int]
    heeded: dict[str, list[Mark]]
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    made: list[ParallelExample] = field(default_factory=list)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)
    new: Spent = field(default_factory=Spent)
    spent: Spent = field(default_factory=Spent)


def folder_of(out: Path) -> Path:
    """Return the folder for everything but the parallel file."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.translate")


def table_of(out: Path) -> Path:
    """Return the path of the parallel file's Parquet version."""
    return out.with_name(f"{folder_of(out).stem}.parquet")


class Job:
    """Translation of examples into a set of languages.

    Args:
        examples: Examples to translate; those without an English turn stay unchanged.
        codes: isogloss codes of the target languages; existing turns are kept.
        responses: Translate responses too; False leaves them for a teacher to write.
        keep: Regular expressions of parts that must appear unchanged in a translation.
        marks: Speakers' marks on earlier translations; they override the filter.
        round_trip: Minimum chrF of back-translations into English; None disables back-translation.

    Raises:
        ConfigError: English is among the target languages.
        DataError: No example has an English turn.
    """

    def __init__(
        self,
        examples: Sequence[ParallelExample],
        codes: Sequence[str],
        translator: Translator,
        out: Path,
        *,
        responses: bool = True,
        keep: Sequence[str] = (),
        marks: Mapping[tuple[str, str], Mark] = {},
        round_trip: float | None = None,
    ):
        if SOURCE in codes:
            raise ConfigError("--to: English is the source language; leave it out")
        if not any(SOURCE in example.turns for example in examples):
            raise DataError("the data have no instruction in English, so there is nothing to translate")
        self.examples, self.codes, self.translator, self.out = examples, codes, translator, out
        self.responses, self.keep, self.round_trip = responses, keep, round_trip
        self.marks = marks
        self.folder = folder_of(out)
        found = [
            Wanted(text, code)
            for code in codes
            for example in examples
            if SOURCE in example.turns and code not in example.turns
            for text in self._texts(example).values()
        ]
        self.wanted = list(dict.fromkeys(found))
        self._key = cache(partial(key_of, translator))

    def missing(self) -> tuple[list[Wanted], list[Wanted]]:
        """Return the texts without an answer, and an upper bound on the back-translations; writes nothing.

        For translations that do not exist yet, the English text stands in for the text to translate back.
        """
        there = answers.journal(self.folder / "answers.jsonl")
        missing = [one for one in self.wanted if self._key(one) not in there]
        if self.round_trip is None:
            return missing, []
        backs = [one for one in self._backs(there, {}).values() if self._key(one) not in there]
        return missing, backs + [Wanted(one.text, SOURCE, one.code) for one in missing]

    def run(self, bar: Bar, likeness: Likeness | None = None, about: Mapping[str, Any] = {}) -> Done:
        """Translate what is missing, then write the files.

        Args:
            bar: Progress bar over the texts.
            likeness: If given, also filters by similarity to a model, in languages with a limit.
            about: Further entries of the report.

        Raises:
            DataError: No translation passes the filter.
            IsoglossError: The translator fails; answers received so far are kept.
        """
        with locked(self.folder):
            kept = answers.journal(self.folder / "answers.jsonl")
            done = Done(dict.fromkeys(self.codes, 0), {code: [] for code in self.codes})

            def ask(wanted: Sequence[Wanted], what: str) -> int:
                missing = [one for one in wanted if self._key(one) not in kept]

                def keep(one: Wanted, answer: Answer) -> None:
                    kept.put(self._key(one), answer)
                    done.new.add(answer.spent)

                if missing:
                    with bar(what) as progress:
                        self.translator.run(missing, keep, progress)
                return len(missing)

            began = time.monotonic()
            asked = ask(self.wanted, "Translating")
            elapsed = time.monotonic() - began
            alike = self._alike(kept, likeness) if likeness else {}
            began = time.monotonic()
            backs = self._backs(kept, alike) if self.round_trip is not None else {}
            distinct = list(dict.fromkeys(backs.values()))
            trip = {
                "least": self.round_trip,
                "texts": len(backs),
                "asked_now": ask(distinct, "Translating back"),
            }
            elapsed += time.monotonic() - began
            self._write(done, kept, alike, {one: kept[self._key(back)] for one, back in backs.items()})
            for one in (*self.wanted, *distinct):
                done.spent.add(kept[self._key(one)].spent)
            report = {
                "translator": self.translator.name,
                **about,
                "languages": list(self.codes),
                "items": len(self.examples),
                "responses": self.responses,
                "kept": done.kept,
                "dropped": done.dropped,
                "compared": done.compared,
                "reviewed": {code: review.counts(marks) for code, marks in done.heeded.items() if marks},
                "texts": {"needed": len(self.wanted), "asked_now": asked},
                "round_trip": None if self.round_trip is None else trip,
                "spent": asdict(done.spent),
                "spent_now": {**asdict(done.new), "elapsed": round(elapsed, 3)},
            }
            write_json(self.folder / "report.json", report)
            write_text(self.folder / "README.md", card(report, done.made, self.codes))
            return done

    def _texts(self, example: ParallelExample) -> dict[str, str]:
        """Return the English texts of an example to translate, by part."""
        turn = example.turns[SOURCE]
        found = {"instruction": turn.instruction}
        if self.responses and turn.response is not None and turn.response.strip():
            found["response"] = turn.response
        return found

    def _backs(self, kept: Journal[Answer], alike: Mapping[Wanted, float]) -> dict[Wanted, Wanted]:
        """Return the back-translations to request, by original: translations that pass all other checks."""
        return {
            one: Wanted(answer.text, SOURCE, one.code)
            for one in self.wanted
            if (answer := kept.get(self._key(one))) is not None
            and answer.text is not None
            and not reasons(one.text, answer.text, one.code, keep=self.keep, likeness=alike.get(one))
        }

    def _write(
        self,
        done: Done,
        kept: Journal[Answer],
        alike: Mapping[Wanted, float],
        backs: Mapping[Wanted, Answer],
    ) -> None:
        """Judge every translation, write the files of items, and fill in what became of them."""
        done.compared = [code for code in self.codes if any(one.code == code for one in alike)]
        dropped: list[Dropped] = []
        readings: dict[tuple[str, str], Reading] = {}
        for example in self.examples:
            turns = dict(example.turns)
            for code in self.codes if SOURCE in turns else ():
                if code in example.turns:
                    continue
                faults, texts = self._judge(example, code, kept, alike, backs)
                reading = Reading(example.id, code, self._texts(example), texts)
                mark = self.marks.get((example.id, code))
                if mark is not None and mark.key == reading.key:
                    done.heeded[code].append(mark)
                    faults, texts = _as_marked(mark, reading)
                elif not faults:
                    readings[example.id, code] = reading
                if faults:
                    dropped += faults
                else:
                    turns[code] = Turn(texts["instruction"], texts.get("response"))
                    done.kept[code] += 1
            done.made.append(replace(example, turns=turns))
        write_lines(self.folder / "dropped.jsonl", [asdict(one) for one in dropped])
        if self.wanted and not any(done.kept.values()):
            raise DataError(
                f"no translation passed the filter; see {self.folder / 'dropped.jsonl'} for the reasons"
            )
        parallel_jsonl.write(self.out, done.made)
        firsts = {(one.id, one.language): one.reason for one in reversed(dropped)}
        order = [example.id for example in in_draw_order(self.examples, FIXED)]
        for code in self.codes:
            whys = Counter(why for (_, own), why in firsts.items() if own == code)
            done.dropped[code] = dict(whys.most_common())
            done.readings[code] = [readings[name, code] for name in order if (name, code) in readings]

    def _judge(
        self,
        example: ParallelExample,
        code: str,
        kept: Journal[Answer],
        alike: Mapping[Wanted, float],
        backs: Mapping[Wanted, Answer],
    ) -> tuple[list[Dropped], dict[str, str]]:
        """Return the faults of an example's translation into a language, and its translated parts."""
        faults: list[Dropped] = []
        texts: dict[str, str] = {}
        for part, english in self._texts(example).items():
            wanted = Wanted(english, code)
            answer = kept[self._key(wanted)]
            if answer.text is None:
                found = [Reason("no translation", answer.why)]
            else:
                back = backs[wanted].text or "" if wanted in backs else None
                found = reasons(
                    english,
                    answer.text,
                    code,
                    keep=self.keep,
                    response=part == "response",
                    likeness=alike.get(wanted),
                    back=back,
                    least=self.round_trip or 0.0,
                )
                texts[part] = answer.text
            if found:
                details = [str(one) for one in found]
                faults.append(Dropped(example.id, code, part, english, answer.text, found[0].check, details))
        return faults, texts

    def _alike(self, kept: Journal[Answer], likeness: Likeness) -> dict[Wanted, float]:
        """Return the similarity of pairs in languages with a limit and enough pairs."""
        found: dict[Wanted, float] = {}
        for code in self.codes:
            if limits_of(code).likeness is None:
                continue
            pairs = [
                (one, text)
                for one in self.wanted
                if one.code == code and (text := kept[self._key(one)].text) is not None
            ]
            if pairs:
                scores = likeness([one.text for one, _ in pairs], [text for _, text in pairs], code)
                found |= {one: s for (one, _), s in zip(pairs, scores, strict=True) if math.isfinite(s)}
        return found


def _as_marked(mark: Mark, reading: Reading) -> tuple[list[Dropped], dict[str, str]]:
    """Apply a speaker's mark to a translation, overriding the filter."""
    texts = dict(reading.own) | (dict(mark.texts) if mark.verdict == "corrected" else {})
    if mark.verdict != "wrong":
        return [], texts
    why = f"review: {mark.reason or 'a speaker marked it wrong'}"
    english, own = (side.get("instruction", "") for side in (reading.english, reading.own))
    return [Dropped(reading.id, reading.language, "instruction", english, own, "review", [why])], texts
