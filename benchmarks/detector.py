"""Error rate of language detection on whole sentences and their beginnings, in the demo's languages.

    python benchmarks/detector.py --data-root FOLDER --out benchmarks/detector.json

Uses FLORES-101 dev from line 201 on; the letters that a guess needs were chosen on the lines before. If the
detector abstains, the text counts as English, as at inference: an error in any other language. `guess`
detects the language of instructions, `detect` that of answers, which abstains more readily. Candidates are
all 15 languages. In scripts without spaces, two characters count as a word.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

from machine import put

from isogloss.data.demo.grammar import LANGUAGES
from isogloss.evaluate.fidelity import _letters, detect, guess
from isogloss.languages import SOURCE, languages

CHOSEN_ON = 200
"""Number of leading lines left out, on which the detector was tuned."""


def words(count: int) -> Callable[[str, bool], str]:
    """Return a function that keeps a text's first words, or twice as many characters without spaces."""
    return lambda text, spaced: " ".join(text.split()[:count]) if spaced else text[: 2 * count]


CUTS: dict[str, Callable[[str, bool], str]] = {
    "whole": lambda text, spaced: text,
    "20 characters": lambda text, spaced: text[:20].strip(),
    "3 words": words(3),
    "8 characters": lambda text, spaced: text[:8].strip(),
    "1 word": words(1),
}


def measure(folder: Path) -> list[dict]:
    """Return a row per cut and detector, with error rates."""
    table, found = languages(), []
    sentences = {
        code: (folder / f"{table[code].flores101}.dev").read_text("utf-8").strip("\n").split("\n")[CHOSEN_ON:]
        for code in LANGUAGES
    }
    for name, cut in CUTS.items():
        texts = {
            code: [cut(line, not table[code].unspaced) for line in lines] for code, lines in sentences.items()
        }
        letters = median(_letters(text).total() for lines in texts.values() for text in lines)
        for detector in (guess, detect):
            said = {code: [detector(text, LANGUAGES) for text in lines] for code, lines in texts.items()}
            errors = {code: mean((one or SOURCE) != code for one in ones) for code, ones in said.items()}
            found.append(
                {
                    "cut": name,
                    "detector": detector.__name__,
                    "letters": letters,
                    "texts": sum(map(len, texts.values())),
                    "error": mean(errors.values()),
                    "undecided": mean(one is None for ones in said.values() for one in ones),
                    "languages": errors,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder that contains flores101_dataset"
    )
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    given = parser.parse_args()
    rows = measure(given.data_root / "flores101_dataset" / "dev")
    found = {"rows": rows, "versions": {name: version(name) for name in ("isogloss", "py3langid")}}
    put(found, given.out)


if __name__ == "__main__":
    main()
