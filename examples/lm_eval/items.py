"""The suites' items for lm-evaluation-harness, with the same rows, wording and answers as in isogloss.

Settings come from `--metadata` and `--model_args`; answers end with the end of turn of the model's own chat
template.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from isogloss.data.chat import end_of_turn
from isogloss.evaluate.suites import SUITES
from isogloss.model.load import load_tokenizer


def xnli(**settings: Any) -> dict[str, Dataset]:
    """Load XNLI in the language of the settings."""
    return _closed("xnli", **settings)


def pawsx(**settings: Any) -> dict[str, Dataset]:
    """Load PAWS-X in the language of the settings."""
    return _closed("pawsx", **settings)


def _closed(
    suite: str,
    *,
    pretrained: str,
    data_root: str,
    language: str = "en",
    split: str = "dev",
    items: int = 1_000_000,
    **others: Any,
) -> dict[str, Dataset]:
    """Return one row per item: instruction, whole answers in option order, and the index of the right one.

    Args:
        pretrained: Model whose chat template ends the answers.
        data_root: Folder with the suite's data.
        language: The isogloss code of the language.
        items: Maximum number of items, spread over the split.
        others: Further settings of the model and the harness; ignored.
    """
    end = end_of_turn(load_tokenizer(pretrained))
    rows = [
        {
            "id": item.id,
            "instruction": item.turns[language].instruction,
            "answers": [answer + end for answer in item.options[language].values()],
            "gold": list(item.options[language]).index(item.gold),
        }
        for item in SUITES[suite](Path(data_root), split, [language], items, 0).items
    ]
    return {"validation": Dataset.from_list(rows)}
