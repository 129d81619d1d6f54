"""Language families learned from the reference model's hidden states."""

import yaml
from transformers import PreTrainedModel

from isogloss import processes
from isogloss.adapters.grouping import learned_families
from isogloss.adapters.tree import family_name
from isogloss.errors import DataError
from isogloss.evaluate import retrieval
from isogloss.files import write_text
from isogloss.model.cost import StageCost, spending
from isogloss.model.decoder import layers_of, parts_of
from isogloss.pipeline.folder import Run

SENTENCES = 48
"""Maximum number of parallel sentences that the languages are compared on."""


def learn_families(run: Run, model: PreTrainedModel, stage: StageCost) -> None:
    """Cluster the languages by hidden states of the middle layer, if configured and not done yet.

    Forms as many groups as these languages have families in Glottolog.
    """
    if run.config.languages.tree != "learned":
        return
    with processes.main_first(together=bool(parts_of(model))):
        if not run.learned.exists():
            families = _learned(run, model, stage)
            if processes.is_main():
                write_text(run.learned, yaml.safe_dump(families, sort_keys=False))


def _learned(run: Run, model: PreTrainedModel, stage: StageCost) -> dict[str, list[str]]:
    shared = [e for e in run.examples if all(code in e.turns for code in run.taught)][:SENTENCES]
    if len(shared) < 8:
        raise DataError(
            f"languages.tree: learned needs 8 examples in all of {', '.join(run.taught)}; the data has "
            f"{len(shared)}; take families"
        )
    layer, subject = max(1, len(layers_of(model)) // 2), retrieval.Model(model, run.tokenizer)
    with spending(stage, model):
        asked = {code: [e.turns[code].instruction for e in shared] for code in run.taught}
        vectors = {
            code: retrieval.embed(subject, some, code, [layer], 64)[layer] for code, some in asked.items()
        }
    groups: dict[str, list[str]] = {}
    for code, group in learned_families(vectors, len({family_name(code) for code in run.taught})).items():
        groups.setdefault(group, []).append(code)
    return groups
