"""Translation of FLORES sentences from and into English, by chrF++ and spBLEU (Goyal et al. 2022)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.utils import SACREBLEU_DIR

from isogloss.config import Translation
from isogloss.data.draw import sample
from isogloss.data.formats import flores
from isogloss.data.tasks.sib200 import flores_lines
from isogloss.data.tasks.translation import TASKS, turn
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, Official, SuiteData, over_languages
from isogloss.languages import SOURCE

LONGEST = 192
"""Maximum tokens of a translation."""


def load(
    root: Path,
    split: str,
    languages: Sequence[str],
    items: int,
    sentences: int,
    options: Translation = Translation(),  # frozen
) -> SuiteData:
    """Load sentences of dev or devtest, spread over the file, each once from English and once into it.

    `items` counts both directions. Of dev, lines that are in SIB-200 are left out, if it is in the data root.
    """
    metrics: dict[str, BLEU | CHRF] = {"chrf++": CHRF(word_order=2)}
    if options.spbleu:
        metrics["spbleu"] = _spbleu()
    part, codes = "dev" if split == "dev" else "devtest", [SOURCE, *languages]
    lines = flores.read(root, part, codes)
    english = lines[SOURCE]
    made = []
    taken, notes = flores_lines(root) if split == "dev" else frozenset(), ()
    taken = taken.intersection(range(len(english)))
    if taken:
        notes = (f"{len(taken)} lines of FLORES dev are in SIB-200 and are not translated.",)
    free = [number for number in range(len(english)) if number not in taken]
    for number in sample(free, max(1, items // len(TASKS))):
        for task in TASKS:
            turns = {
                code: turn(task, code, english[number], texts[number])
                for code, texts in lines.items()
                if code != SOURCE
            }
            made.append(
                Item(
                    f"{task}-{number + 1}",
                    task,
                    turns,
                    answer_language=dict.fromkeys(turns, SOURCE) if task == "to_english" else {},
                    measures=frozenset({"fidelity"}),
                    longest=LONGEST,
                )
            )
    release = flores.release(root, part, codes)
    scored = partial(score, made, metrics)
    return SuiteData("translation", release, split, tuple(made), {}, score=scored, notes=notes)


def score(
    items: Sequence[Item], metrics: Mapping[str, BLEU | CHRF], answers: Mapping[str, Mapping[str, str]]
) -> Official:
    """Return corpus scores / 100 by task, metric and language; empty answers count as empty hypotheses."""
    tasks: dict[str, dict] = {}
    empty: dict[str, dict[str, int]] = {task: {} for task in TASKS}
    for task in TASKS:
        asked = [item for item in items if item.task == task]
        for name, metric in metrics.items():
            values = {}
            for code, given in answers.items():
                pairs = [
                    (" ".join(given[item.id].split()), item.turns[code].response or "")
                    for item in asked
                    if item.id in given
                ]
                if pairs:
                    texts, references = map(list, zip(*pairs, strict=True))
                    empty[task][code] = sum(not text for text in texts)
                    values[code] = metric.corpus_score(texts, [references]).score / 100
            if values:
                tasks.setdefault(task, {})[name] = over_languages(values)
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    return Official(tasks, {"unreadable": empty, "signatures": signatures})


def _spbleu() -> BLEU:
    """Return BLEU with the SentencePiece model that FLORES-101 was released with."""
    try:
        return BLEU(tokenize="flores101")
    except ImportError:
        way = "install sentencepiece"
    except Exception:  # a download may raise anything, from any library
        model = Path(SACREBLEU_DIR) / "models" / "sacrebleu_tokenizer_spm.model"
        way = f"its model {model} is missing and cannot be downloaded; put it there"
    raise DataError(f"spBLEU cannot be computed: {way}, or set evaluate.translation.spbleu=false")
