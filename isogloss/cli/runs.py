"""From command-line arguments to settings and runs; anything missing is a one-line error."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isogloss.config import Config, load_config, run_folder_of
from isogloss.errors import ConfigError, RunError
from isogloss.languages import UnknownLanguageError, resolve
from isogloss.pipeline import bundle
from isogloss.pipeline.logging import quiet

if TYPE_CHECKING:
    from isogloss.pipeline.folder import Run
from isogloss.cli.screen import Screen, out, print_line

TUNED = ("tuned", "no tuned model", "tune")
DISTILLED = ("adapters/tree.safetensors", "no adapters", "distill")


def settings_of(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> Config:
    """Load the settings of a file, or the default, with --set and --data-root; check their paths."""
    return load_config(config, overrides or (), data_root=data_root, places=True)


def codes_of(spellings: Sequence[str], where: str) -> list[str]:
    """Return the isogloss codes of languages named on the command line, without duplicates."""
    try:
        return list(dict.fromkeys(resolve(one).code for one in spellings))
    except UnknownLanguageError as error:
        raise ConfigError(f"{where}: {error}") from None


def prepare(settings: Config) -> "Run":
    """Return a run without touching its folder; only the main process prints."""
    quiet()
    from isogloss import processes
    from isogloss.pipeline.folder import ProgressReporter, Run

    out.quiet = not processes.is_main()

    class Shown(Screen, ProgressReporter):
        """A Screen that the pipeline accepts; defined here because the pipeline imports torch."""

    return Run(settings, Shown())


def open_job(settings: Config) -> "Run":
    """Open a run and create its folder, after checking that everything it needs exists."""
    job = prepare(settings)
    from isogloss.pipeline import checks
    from isogloss.pipeline.folder import open_folder

    checks.check(job)
    open_folder(job)
    return job


def load_job(run_folder: Path, data_root: Path | None = None) -> "Run":
    """Load an existing run as it is, except for the data root."""
    job = prepare(load_config(run_folder, data_root=data_root))
    from isogloss.pipeline.folder import load_run

    load_run(run_folder, job.reporter)
    return job


def check_run_folder(folder: Path) -> None:
    """Raise an error if a folder is not a run folder."""
    if folder.is_file():
        own = run_folder_of(folder)
        raise RunError(f"{folder} is a file; name the run folder{f', {own}' if own else ''}")
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is not a run folder; it has no config.yaml")


def require(folder: Path, *stages: tuple[str, str, str]) -> None:
    """Raise an error if the output of an earlier stage is missing in the run folder."""
    if bundle.needs_restoring(folder):
        quiet()
        bundle.restore(folder, print_line)
    for file, lacks, command in stages:
        if not (folder / file).exists():
            raise RunError(f"{folder} has {lacks}; run `isogloss {command}` first")
