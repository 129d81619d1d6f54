"""How often a text's language is mistaken: whole sentences and their beginnings, in the demo's languages.

    python benchmarks/detector.py --data-root FOLDER --out benchmarks/detector.json

FLORES-101 dev from line 201 on; how many letters a guess needs was chosen on the lines before. Where the
detector cannot tell, a text is taken for English, as in answering: an error in any other language. `guess` is
the detector of instructions, `detect` that of answers, which would rather not choose. Candidates are all 15
languages. Of a script without spaces, two letters count as a word.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

from machine import put

from isogloss.data.demo.grammar import LANGUAGES
from isogloss.evaluate.fidelity import _UNSPACED, _letters, detect, guess
from isogloss.languages import SOURCE, languages

CHOSEN_ON = 200
"""Lines that are not measured."""


def words(count: int) -> Callable[[str, bool], str]:
    """The first words of a text; where nothing parts them, twice as many letters."""
    return lambda text, spaced: " ".join(text.split()[:count]) if spaced else text[: 2 * count]


CUTS: dict[str, Callable[[str, bool], str]] = {
    "whole": lambda text, spaced: text,
    "20 characters": lambda text, spaced: text[:20].strip(),
    "3 words": words(3),
    "8 characters": lambda text, spaced: text[:8].strip(),
    "1 word": words(1),
}


def measure(folder: Path) -> list[dict]:
    """A row per cut and detector: shares of texts that are mistaken."""
    table, found = languages(), []
    sentences = {
        code: (folder / f"{table[code].flores101}.dev").read_text("utf-8").strip("\n").split("\n")[CHOSEN_ON:]
        for code in LANGUAGES
    }
    for name, cut in CUTS.items():
        texts = {
            code: [cut(line, table[code].script not in _UNSPACED) for line in lines]
            for code, lines in sentences.items()
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
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds flores101_dataset")
    parser.add_argument("--out", type=Path, help="where the JSON goes; printed without it")
    given = parser.parse_args()
    rows = measure(given.data_root / "flores101_dataset" / "dev")
    found = {"rows": rows, "versions": {name: version(name) for name in ("isogloss", "py3langid")}}
    put(found, given.out)


if __name__ == "__main__":
    main()
