"""Language Confusion Benchmark: are answers in the requested language? (Marchisio et al. 2024)"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.formats.lines import nearest
from isogloss.data.formats.records import read_file
from isogloss.errors import DataError
from isogloss.evaluate.confusion import harmonic, lines_pass, words_pass
from isogloss.evaluate.items import Item, Official, SuiteData, over_languages
from isogloss.languages import SOURCE

SETTINGS = ("monolingual", "crosslingual")
FOLDERS = ("language_confusion/test_sets", "language_confusion", "language_confusion_sample")
LONGEST = 100
COLUMNS = ("prompt", "language")


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load a sample of prompts per setting, source and language; `split` is ignored, as there is one set."""
    folder = next((root / one for one in FOLDERS if (root / one / SETTINGS[0]).is_dir()), None)
    if folder is None:
        looked = ", ".join(FOLDERS)
        raise DataError(
            f"Language Confusion Benchmark not found; looked for a folder monolingual in {looked}", root
        )
    files = [
        (setting, source.name, code, source / f"{code}.csv")
        for setting in SETTINGS
        for source in sorted((folder / setting).iterdir() if (folder / setting).is_dir() else ())
        for code in (SOURCE, *languages)
        if (source / f"{code}.csv").is_file()
    ]
    each = Counter(code for _, _, code, _ in files)
    made = []
    for setting, source, code, path in files:
        prompts = _read(path, code)
        most = max(1, items // each[code])
        for number in sample(range(len(prompts)), most):
            made.append(
                Item(
                    f"{setting}-{source}-{code}-{number + 1}",
                    f"{setting}/{source}",
                    {code: Turn(prompts[number])},
                    measures=frozenset({"fidelity"}),
                    longest=LONGEST,
                )
            )
    return SuiteData("language_confusion", "1.0", "test", tuple(made), {}, score=partial(score, made))


def score(items: Sequence[Item], answers: Mapping[str, Mapping[str, str]]) -> Official:
    """Compute pass rates by setting and language, averaged over the sources of the prompts."""
    candidates = list(answers)
    rates: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task in dict.fromkeys(item.task for item in items):
        setting = task.split("/")[0]
        for code, given in answers.items():
            texts = [given[item.id] for item in items if item.task == task and item.id in given]
            judged = [(text, lines_pass(text, code, candidates=candidates)) for text in texts]
            judged = [(text, passes) for text, passes in judged if passes is not None]
            if not judged:
                continue
            passed = [text for text, passes in judged if passes]
            words = [pure for text in passed if (pure := words_pass(text, code)) is not None]
            line, word = len(passed) / len(judged), sum(words) / len(words) if words else None
            found = {"lpr": line, "wpr": word, "lcpr": harmonic(line, word)}
            for name, value in found.items():
                if value is not None:
                    rates.setdefault(setting, {}).setdefault(name, {}).setdefault(code, []).append(value)
    return Official(
        {
            setting: {
                name: over_languages({code: sum(v) / len(v) for code, v in by_code.items()})
                for name, by_code in by_name.items()
            }
            for setting, by_name in rates.items()
        }
    )


def _read(path: Path, code: str) -> list[str]:
    """Read the prompts of a file; quoted prompts may span several lines."""
    prompts: list[str] = []
    for _, line, _, row in read_file(path):
        for column in COLUMNS:
            if column not in row:
                raise DataError(f"the header has no column {column}; {nearest(column, list(row))}", path, 1)
        prompt, language = (row[column] or "" for column in COLUMNS)
        if language != code:
            raise DataError(f"the language is {language!r}, but the file is for {code}", path, line)
        if not prompt.strip():
            raise DataError("the prompt is empty; leave the row out", path, line)
        prompts.append(prompt)
    if not prompts:
        raise DataError("the file is empty; it must contain prompts", path)
    return prompts
