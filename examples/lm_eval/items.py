"""The suites' items as lm-evaluation-harness reads them: the same rows, wording and answers.

Settings come from `--metadata` and `--model_args`; answers end as the model's own chat template ends a turn.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from isogloss.data.chat import end_of_turn
from isogloss.evaluate.suites import SUITES
from isogloss.model.load import load_tokenizer


def xnli(**settings: Any) -> dict[str, Dataset]:
    """XNLI in the language of the settings."""
    return _closed("xnli", **settings)


def pawsx(**settings: Any) -> dict[str, Dataset]:
    """PAWS-X in the language of the settings."""
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
    """One row an item: its instruction, whole answers in the order of the meanings, and which is right.

    Args:
        pretrained: The model whose chat template ends the answers.
        data_root: Where the suite's data are.
        language: Our code.
        items: At most, spread over the split.
        others: Of the model, and of the harness.
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
