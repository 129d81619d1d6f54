"""A finished run learns another language: new nodes are trained, every other one stays as it is to the bit.

Flow: families of the run + the new languages → larger tree → old rows taken over → examples that stand in the
suites left out → only new nodes learn.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from isogloss.adapters.fit import refuse_misfit
from isogloss.adapters.grouping import families_of_file
from isogloss.adapters.tree import family_name
from isogloss.data.sources import parallel_examples
from isogloss.errors import RunError
from isogloss.languages import SOURCE
from isogloss.model.load import check_machine
from isogloss.pipeline.checks import without_leaks
from isogloss.pipeline.folder import Run, refuse_unusable, writing
from isogloss.pipeline.stages import no_kl
from isogloss.pipeline.training import train_adapters
from isogloss.pipeline.training_rows import rows_for


@writing
def add_languages(run: Run, codes: Sequence[str]) -> None:
    """Train a leaf for each language, and its family where the tree has none, and write them to the run.

    Raises:
        RunError: The run is not distilled, has a language already, or its tree gives a new one no rows.
        DataError: The data has no item in a language.
        ConfigError: A setting names a layer that the model lacks, or wants more of the machine than there is.
    """
    if not run.families:
        raise RunError(f"{run.folder} has no adapters that can be added to; run `isogloss distill` first")
    for code in codes:
        if code == SOURCE or code in run.families:
            what = "is what all others follow" if code == SOURCE else "was taught already"
            raise RunError(f"{code} {what}; name another language")
    check_machine(four_bit=run.config.four_bit, shard=run.config.shard)
    examples = parallel_examples(run.config, run.data_root, codes, run.reporter.say_once)
    examples = without_leaks(run, examples, codes)
    refuse_unusable(run.config, examples, codes, "add items, or name a file by --data")
    old = run.tree
    tree = run.tree_of(run.families | _families(run, codes))
    new = [node for node in tree.nodes if node.name not in old.by_name]
    names = {node.name for node in new}
    for code in codes:
        path = tree.path(code)
        if not any(node.rank for node in path if node.name in names):
            held = " and ".join(node.name for node in path if node.rank)
            raise RunError(
                f"{code} would learn nothing: its nodes would have no adapter rows, all of its path's being "
                f"those of {held}, which stay as they are; it answers through them as it is"
            )
    refuse_misfit(run.config.model_copy(update={"model": str(run.tuned)}))
    model = run.reference_model(learning=True)
    stage = run.ledger.begin(f"add {' '.join(codes)}")
    rows = rows_for(run, model, examples, tree, codes, stage, replay=False)
    run.reporter.say(
        f"{len(rows)} rows in {', '.join(codes)} train {len(new)} new nodes{no_kl(run.config)}; "
        "the others stay"
    )
    adapters = run.student(model, trained=False, tree=tree)
    adapters.load_nodes(load_file(run.trained), old)
    adapters.learn_only(new)
    train_adapters(run, adapters, rows, codes, stage)


def _families(run: Run, codes: Sequence[str]) -> dict[str, str]:
    """Where new languages belong: as the run's file says, else Glottolog."""
    shape = run.config.languages.tree
    if isinstance(shape, Path) and shape.is_file():
        return families_of_file(shape, codes)
    return {code: family_name(code) for code in codes}
