"""Compare the cost of our method and others, such as reinforcement learning, to align the languages.

python -m experiments.compare_methods [CONFIG] --out FOLDER
"""

from pathlib import Path
from typing import Annotated

import typer

from experiments.settings import settings_for_choosing
from experiments.tables import show_methods
from isogloss.cli import main
from isogloss.cli.app import ConfigFile, DataRoot, Overrides, alone, path_of
from isogloss.cli.runs import prepare
from isogloss.cli.screen import print_line
from isogloss.errors import ConfigError
from isogloss.pipeline.logging import quiet


def compare_methods(
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="isogloss, reference, flat, shared, sft, sft-languages, sequence, dco, dpo, grpo or "
            "sft-grpo; repeatable. With other trainer settings: 'grpo: learning_rate=3e-4'. Default: all.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds, starting from that in the settings.")
    ] = 1,
    points: Annotated[int, typer.Option(min=1, help="Number of evaluations per method.")] = 10,
    times: Annotated[float, typer.Option(min=0, help="Time limit of a method, as a multiple of ours.")] = 3.0,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", parser=path_of, help="Folder for all runs.")
    ] = Path("runs/methods"),
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Compare the cost of our method and others, such as reinforcement learning, to align the languages."""
    settings = settings_for_choosing(config, set_, data_root)
    quiet()
    try:
        from experiments import comparison, methods
    except ImportError as error:
        raise ConfigError(f"comparing methods needs trl ({error.name}); pip install 'isogloss[rl]'") from None

    for text in method or ():
        methods.parse(text)
    job = prepare(settings)
    from isogloss.pipeline import checks

    checks.check(job)
    chosen = tuple(dict.fromkeys(method or methods.METHODS))
    if comparison.OURS not in chosen:
        chosen = (comparison.OURS, *chosen)
    found = comparison.compare_methods(
        settings,
        chosen,
        range(settings.seed, settings.seed + seeds),
        folder,
        job.reporter,
        points=points,
        times=times,
    )
    show_methods(found["rows"])
    print_line(f"Rows: {folder / 'methods.json'}; plot: {folder / 'methods.svg'}")


app = alone(compare_methods)

if __name__ == "__main__":
    main(app=app, name="python -m experiments.compare_methods")
