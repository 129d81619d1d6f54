"""Training data of a run and its licences, for model cards."""

from typing import TYPE_CHECKING

from isogloss.config import AnySource, FileData, TopicData
from isogloss.evaluate.suites import ABOUT

if TYPE_CHECKING:
    from isogloss.pipeline.folder import Run

UNKNOWN = "licence not known here: state it before you pass this on"


def learned_from(run: "Run", code: str | None = None) -> str:
    """Describe the data of a run, with their licences where known.

    Args:
        code: Language of the card, if it is about one.
    """
    found = " ".join(map(_told, run.config.sources))
    if run.config.parallel_text:
        found += (
            f" Pairs of sentences of {', '.join(one.type for one in run.config.parallel_text)}; {UNKNOWN}."
        )
    if code in run.families and code not in run.config.languages.targets:
        found += " The language was added later, from these data or from a file of its own."
    return found


def _told(source: AnySource) -> str:
    if isinstance(source, FileData):
        return f"{source.path.name}; {UNKNOWN}."
    if isinstance(source, TopicData):
        return f"Sentences of {', '.join(source.sentences)}, asked for their topic; {UNKNOWN}."
    return f"{source.type} ({ABOUT[source.type].source}); licence: {ABOUT[source.type].licence}."
