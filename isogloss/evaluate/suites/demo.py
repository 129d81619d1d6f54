"""The demo suite: seven tasks on meanings held out from training."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.data.demo.items import demo_items
from isogloss.data.demo.split import events_of
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE

REVISION = "1"
UNREPORTED = 100
"""Fewest sentences for statistics and the choice of a layer, however few are reported."""


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load items and sentences from the demo grammar; needs no data root."""
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    made = demo_items("test" if split == "test" else "dev", items, codes)
    return SuiteData(
        name="demo",
        revision=REVISION,
        split=split,
        items=tuple(
            Item(
                id=item.example.id,
                task=item.example.task,
                turns=item.example.turns,
                options=item.example.options,
                gold=item.gold,
                answer_language=dict.fromkeys(codes, SOURCE) if item.example.task == "to_english" else {},
            )
            for item in made
        ),
        sentences=_sentences("test" if split == "test" else "dev", codes, sentences),
        layer_sentences=_sentences("dev" if split == "test" else "train", codes, max(sentences, UNREPORTED)),
    )


def _sentences(split: str, codes: Sequence[str], count: int) -> dict[str, tuple[str, ...]]:
    # Every k-th event, so that all people, actions, places and times are covered.
    events = events_of(split)  # type: ignore[arg-type]
    chosen = events[:: max(1, len(events) // count)][:count]
    return {code: tuple(phrases(code).event(event) for event in chosen) for code in codes}
