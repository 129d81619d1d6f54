"""Recall of the translation filter on damaged pairs, and share of clean pairs kept, by language.

    python benchmarks/filter.py --data-root FOLDER --out benchmarks/filter.json
    python benchmarks/filter.py --data-root FOLDER --choose isogloss/translate/limits.yaml

Uses at most 600 Tatoeba pairs per language, drawn by a hash of the English. Limits are chosen on the half
with an even hash; the other half is reported. For the languages given in --likeness, the first 200 pairs of
each half, without repeated sentences, are also scored with a base model (gemma-3-270m). This detects shuffled
pairs (another sentence's translation): a tenth of the pairs at a time among nine tenths that are right, or
half of them; `kept` then counts the right pairs. Other damages: half cut (with and without a full stop
appended), wrong language (any other language of the data; one with the same script), copy (the English),
numbers changed (in pairs to which the same number was added), placeholder lost ({name}, added likewise).
"""

import argparse
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import yaml
from machine import put

from isogloss.languages import languages
from isogloss.translate.filter import Limits, ends, foreignness, reasons, surplus

PAIRS = 600
READ = 200
"""Maximum pairs of a half that are scored with the base model."""
SHUFFLED = {"shuffled": 10, "shuffled, half of all": 2}
"""Denominator of the share of a batch that is shuffled."""
LOST = {"shortest": 0.003, "longest": 0.003, "foreign": 0.005, "likeness": 0.03}
"""Shares of clean pairs that each limit may drop."""
DAMAGES = (
    "half cut",
    "half cut, full stop",
    "wrong language",
    "wrong language, same script",
    "copy",
    "numbers changed",
    "placeholder lost",
)
FEWEST_ENDS = 0.96
"""Share of clean pairs with final punctuation from which on it is required."""
Pair = tuple[str, str]


def number_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def pairs_of(file: Path) -> list[Pair]:
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1:]
    pairs = dict.fromkeys(tuple(line.split("\t")) for line in lines if line)
    return sorted(pairs, key=lambda pair: number_of(pair[0]))[:PAIRS]  # type: ignore[return-value]


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def choose(pairs: list[Pair], code: str, likeness: list[float] | None) -> Limits:
    ratio = sum(len(text) for _, text in pairs) / sum(len(english) for english, _ in pairs)
    lengths = [surplus(english, text, ratio) for english, text in pairs]
    margins = [m for _, text in pairs if math.isfinite(m := foreignness(text, code)[0])] or [0.0]
    ended = [ends(text) for english, text in pairs if english.endswith((".", "?", "!"))]
    return Limits(
        ratio=round(ratio, 3),
        shortest=round(quantile(lengths, LOST["shortest"]), 2),
        longest=round(quantile(lengths, 1 - LOST["longest"]), 2),
        foreign=round(quantile(margins, LOST["foreign"]), 2),
        ends=mean(ended) >= FEWEST_ENDS,
        likeness=round(quantile(likeness, LOST["likeness"]), 3) if likeness else None,
    )


def half(text: str) -> str:
    words = text.split(" ")
    return " ".join(words[: len(words) // 2]) if len(words) > 3 else text[: len(text) // 2]


def mark(pair: Pair, what: str) -> Pair:
    return tuple(f"{side} ({what})" for side in pair)  # type: ignore[return-value]


def damages(pairs: list[Pair], others: dict[str, list[str]], code: str) -> dict[str, list[Pair]]:
    alike = [name for name in others if languages()[name].script == languages()[code].script]

    def of(names: list[str], english: str) -> str:
        texts = others[names[number_of(english) % len(names)]]
        return texts[number_of(english[::-1]) % len(texts)]

    found: dict[str, list[Pair]] = {
        "half cut": [(english, half(text)) for english, text in pairs],
        "half cut, full stop": [(english, half(text) + ".") for english, text in pairs],
        "wrong language": [(english, of(list(others), english)) for english, _ in pairs],
        "copy": [(english, english) for english, _ in pairs],
    }
    if alike:
        found["wrong language, same script"] = [(english, of(alike, english)) for english, _ in pairs]
    for number, pair in enumerate(pairs):
        many = 100 + 7 * number
        changed = mark(pair, str(many))[0], mark(pair, str(many + 10 ** (number % 3)))[1]
        found.setdefault("numbers changed", []).append(changed)
        found.setdefault("placeholder lost", []).append((mark(pair, "{name}")[0], pair[1]))
    return found


class Read(NamedTuple):
    """Pairs scored with a base model; by damage, scores of right pairs, shuffled pairs and their scores."""

    pairs: list[Pair]
    right: dict[str, list[float]]
    shuffled: dict[str, list[Pair]]
    scores: dict[str, list[float]]


Likeness = Callable[[list[Pair], str], Read | None]
"""Scores pairs of a language; returns None if the language is not scored."""


def measure(folder: Path, likeness: Likeness, chosen: dict[str, Limits], only: Collection[str]) -> list[dict]:
    files = {file.name[3:-7]: file for file in sorted(folder.glob("en-*.tsv.gz"))}
    halves = {
        code: tuple([pair for pair in pairs_of(file) if number_of(pair[0]) % 2 == rest] for rest in (0, 1))
        for code, file in files.items()
    }
    rows = []
    for code, (choosing, reported) in halves.items():
        alike = likeness(choosing, code)
        if alike is None and not set(only) & set(DAMAGES):
            continue
        limits = choose(choosing, code, alike.right["shuffled"] if alike else None)
        chosen[code] = limits
        others = {name: [text for _, text in two] for name, (_, two) in halves.items() if name != code}
        read = likeness(reported, code)

        def kept(pairs: list[Pair], scores: list[float] | None = None, code=code, limits=limits) -> float:
            numbers = range(len(pairs))
            faults = [
                reasons(*pairs[n], code, limits=limits, likeness=scores[n] if scores else None)
                for n in numbers
            ]
            return mean(not some for some in faults)

        damaged = {name: (pairs, None) for name, pairs in damages(reported, others, code).items()}
        damaged |= {name: (read.shuffled[name], read.scores[name]) for name in SHUFFLED} if read else {}
        for damage, (pairs, scores) in damaged.items():
            if damage not in only:
                continue
            clean = reported if scores is None else read.pairs
            surface = kept(clean)
            found = 1 - kept(pairs, scores)
            rows.append(
                {
                    "language": code,
                    "damage": damage,
                    "pairs": len(pairs),
                    "recall": found,
                    "kept": surface if scores is None else kept(clean, read.right[damage]),
                    "kept_without_likeness": surface,
                }
            )
            print(*rows[-1].values(), flush=True)
    return rows


def distinct(pairs: list[Pair]) -> list[int]:
    """Return indices of pairs neither side of which occurred before."""
    seen: set[str] = set()
    return [n for n, pair in enumerate(pairs) if seen.isdisjoint(pair) and seen.update(pair) is None]


def nobody(pairs: list[Pair], code: str) -> None:
    """Score nothing: no base model is used."""


def read_by(base: str, codes: list[str], states: Path) -> Likeness:
    """Return a function that scores true and shuffled pairs, with hidden states cached in a folder."""
    import torch

    from isogloss.evaluate.retrieval import Model, embed
    from isogloss.model.decoder import layers_of
    from isogloss.model.load import load_model, load_tokenizer
    from isogloss.translate.likeness import layers, scores

    subject: list[Model] = []

    def likeness(pairs: list[Pair], code: str):
        if code not in codes:
            return None
        sides = []
        pairs = pairs[:READ]
        kept = distinct(pairs)
        for side, language in ((0, "en"), (1, code)):
            texts = [pair[side] for pair in pairs]
            file = states / f"{base}-{hashlib.sha256(repr(texts).encode()).hexdigest()[:12]}.pt"
            if not file.exists():
                if not subject:
                    subject.append(Model(load_model(base, torch.float32), load_tokenizer(base)))
                chosen = list(layers(len(layers_of(subject[0].model))))
                states.mkdir(parents=True, exist_ok=True)
                torch.save(embed(subject[0], texts, language, chosen, 32), file)
            sides.append({layer: vectors[kept] for layer, vectors in torch.load(file).items()})
        ours, theirs = ([pairs[n][side] for n in kept] for side in (0, 1))
        count = len(kept)
        right, wrong, mixed = {}, {}, {}
        for damage, parts in SHUFFLED.items():
            right[damage], wrong[damage] = [0.0] * count, [0.0] * count
            mixed[damage] = [("", "")] * count
            for part in range(parts):
                places = list(range(part, count, parts))
                order = list(range(count))
                for place, other in zip(places, [*places[1:], places[0]], strict=True):
                    order[place] = other
                moved = {layer: vectors[order] for layer, vectors in sides[1].items()}
                found = scores(sides[0], moved, ours, [theirs[n] for n in order]).tolist()
                for n in places:
                    wrong[damage][n], mixed[damage][n] = found[n], (ours[n], theirs[order[n]])
                for n in range((part + 1) % parts, count, parts):
                    right[damage][n] = found[n]
        return Read(list(zip(ours, theirs, strict=True)), right, mixed, wrong)

    return likeness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that contains tatoeba")
    parser.add_argument("--likeness", nargs="*", default=[], help="languages scored with the base model")
    parser.add_argument("--base", default="gemma-3-270m")
    parser.add_argument(
        "--states", type=Path, default=Path("runs/filter"), help="cache of the base's hidden states"
    )
    parser.add_argument(
        "--damages", nargs="*", default=[], help="only measure these; other rows of --out are kept"
    )
    parser.add_argument("--choose", type=Path, help="file to write the limits to")
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    given = parser.parse_args()
    read = read_by(given.base, given.likeness, given.states) if given.likeness else nobody
    limits: dict[str, Limits] = {}
    only = given.damages or (*DAMAGES, *SHUFFLED)
    rows = measure(given.data_root / "tatoeba", read, limits, only)
    if given.damages and given.out and given.out.exists():
        there = json.loads(given.out.read_text())["rows"]
        rows = sorted(
            [*(row for row in there if row["damage"] not in only), *rows], key=lambda row: row["language"]
        )
    if given.choose:
        entries = {code: vars(one) for code, one in limits.items()}
        head = "# Limits by language, chosen by benchmarks/filter.py; filter.Limits says what each is.\n"
        given.choose.write_text(
            head + yaml.safe_dump(entries, default_flow_style=None, width=110, sort_keys=False)
        )
    found = {"rows": rows, "versions": {name: version(name) for name in ("isogloss", "py3langid")}}
    put(found, given.out)


if __name__ == "__main__":
    main()
