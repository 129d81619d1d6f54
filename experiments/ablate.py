"""Compare variants of stage 2 on one reference model per seed.

python -m experiments.ablate [CONFIG] --variant NAME --out FOLDER
"""

from pathlib import Path
from typing import Annotated

import typer

from experiments.settings import settings_for_choosing
from experiments.tables import show_ablation
from isogloss.cli import main
from isogloss.cli.app import ConfigFile, DataRoot, Overrides, alone, path_of
from isogloss.cli.runs import prepare
from isogloss.cli.screen import print_line
from isogloss.pipeline.logging import quiet


def ablate(
    config: ConfigFile = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="families, random, flat, shared, no-hidden, no-kl, with-kl, no-texts, no-english, "
            "no-replay, sft, or your own as 'NAME: a.b=c d.e=f'; repeatable. Default: the four trees.",
        ),
    ] = None,
    items: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Parallel items per language, for every variant; repeat for a learning curve.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds, starting from that in the settings.")
    ] = 1,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", parser=path_of, help="Folder for all runs.")
    ] = Path("runs/ablation"),
    jobs: Annotated[
        int, typer.Option(min=1, help="Parallel runs; useful on a GPU that a single run does not fill.")
    ] = 1,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Compare variants of stage 2 on one reference model per seed."""
    settings = settings_for_choosing(config, set_, data_root)
    quiet()
    from experiments import ablation

    variants = ablation.with_items(
        [ablation.parse(text) for text in variant or ("families", "random", "flat", "shared")],
        items or (),
    )
    job = prepare(settings)
    from isogloss.pipeline import checks

    checks.check(job)
    done = ablation.ablate(
        settings, variants, range(settings.seed, settings.seed + seeds), folder, job.reporter, jobs=jobs
    )
    show_ablation(ablation.summary(done.rows), done.differences)
    print_line(f"Rows: {folder / 'ablation.json'}")


app = alone(ablate)

if __name__ == "__main__":
    main(app=app, name="python -m experiments.ablate")
