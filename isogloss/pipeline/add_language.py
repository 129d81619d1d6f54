"""Add languages to a finished run: only new nodes are trained, all others stay bit-identical.

Flow: families of the run + new languages → larger tree → trained adapter rows copied → training of the new
nodes. Examples that also occur in the evaluation suites are excluded.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from isogloss import processes
from isogloss.adapters.fit import refuse_misfit
from isogloss.adapters.grouping import families_of_file
from isogloss.adapters.tree import family_name
from isogloss.data.sources import parallel_examples, refuse_unusable
from isogloss.errors import RunError
from isogloss.languages import SOURCE
from isogloss.model.attention import check_compiler
from isogloss.model.load import check_machine
from isogloss.pipeline.checks import check_lengths, without_leaks
from isogloss.pipeline.folder import Run, writing
from isogloss.pipeline.stages import no_kl
from isogloss.pipeline.tracking import check_installed
from isogloss.pipeline.training import train_adapters
from isogloss.pipeline.training_rows import rows_for


@writing
def add_languages(run: Run, codes: Sequence[str]) -> None:
    """Train a leaf for each language, and its family if the tree lacks it, and write them to the run.

    Raises:
        RunError: The run is not distilled, already has a language, or a new one would get no adapter rows.
        DataError: The data has no usable item in a language.
        ConfigError: The adapter settings do not fit the model, or the machine does not support a setting.
    """
    if not run.families:
        raise RunError(f"{run.folder} has no adapters to extend; run `isogloss distill` first")
    for code in codes:
        if code == SOURCE or code in run.families:
            what = "is the source language" if code == SOURCE else "was already taught"
            raise RunError(f"{code} {what}; choose another language")
    check_machine(four_bit=run.config.four_bit, shard=run.config.shard)
    processes.refuse_idle_gpus()
    check_installed(run.config.report_to)
    if run.config.compile:
        check_compiler()
    examples = parallel_examples(run.config, run.data_root, codes, run.reporter.say_once)
    examples = without_leaks(run, examples, codes)
    refuse_unusable(run.config, examples, codes, "add items, or name a file by --data")
    old = run.tree
    tree = run.tree_of(run.families | _families(run, codes))
    new = [node for node in tree.nodes if node.name not in old.by_name]
    for code in codes:
        path = tree.path(code)
        if not any(node.rank for node in path if node in new):
            held = " and ".join(node.name for node in path if node.rank)
            raise RunError(
                f"{code} would learn nothing: its new nodes have no adapter rows; all rows of its path are "
                f"in {held}, and trained nodes do not change"
            )
    refuse_misfit(run.config.model_copy(update={"model": str(run.tuned)}))
    model = run.reference_model(learning=True)
    stage = run.ledger.begin(f"add {' '.join(codes)}")
    rows = rows_for(run, model, examples, tree, codes, stage, replay=False)
    check_lengths(run, rows, str(run.tuned))
    count = sum(bool(node.rank) for node in new)
    run.reporter.say(
        f"{len(rows)} rows in {', '.join(codes)} train {count} new nodes{no_kl(run.config)}; "
        "the others stay unchanged"
    )
    adapters = run.student(model, trained=False, tree=tree)
    adapters.load_nodes(load_file(run.trained), old)
    adapters.learn_only(new)
    train_adapters(run, adapters, rows, codes, stage)


def _families(run: Run, codes: Sequence[str]) -> dict[str, str]:
    """Return the families of new languages: from the run's file if it has one, else from Glottolog."""
    shape = run.config.languages.tree
    if isinstance(shape, Path) and shape.is_file():
        return families_of_file(shape, codes)
    return {code: family_name(code) for code in codes}
