"""isogloss: one instruction, followed the same way in every language.

`run()` runs all stages, like the command line. `load()` opens a finished run that answers in every language;
`load_peft()` loads its model with one language's adapter.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isogloss.evaluate.fidelity import Detector
    from isogloss.inference import Aligned

__all__ = ["load", "load_peft", "run"]


def run(config: str | Path | None = None, **overrides: Any) -> Path:
    """Run every stage and return the run folder.

    Args:
        config: YAML settings file; defaults to the built-in settings.
        overrides: Settings by dotted name, for example `**{"distill.learning_rate": 1e-3}`.

    Raises:
        isogloss.errors.IsoglossError: A problem that the caller can fix.
    """
    from isogloss.config import load_config

    settings = load_config(
        None if config is None else Path(config),
        [
            f"{name}={json.dumps(value, default=_plain, ensure_ascii=False)}"
            for name, value in overrides.items()
        ],
        places=True,
    )
    from isogloss.pipeline import checks, stages
    from isogloss.pipeline.folder import ProgressReporter, Run, open_folder

    job = Run(settings, ProgressReporter())
    checks.check(job)
    open_folder(job)
    stages.run_all(job)
    return settings.run


def load(run: str | Path, detector: "Detector | None" = None) -> "Aligned":
    """Load a finished run, for use as `load(run).generate(texts, languages)`.

    Args:
        run: The run folder.
        detector: Detects a text's language when none is given; defaults to the built-in detector.

    Raises:
        isogloss.errors.RunError: The run is not finished.
    """
    from isogloss.evaluate.fidelity import guess
    from isogloss.inference import Aligned
    from isogloss.pipeline.folder import load_run

    return Aligned(load_run(Path(run)), detector or guess)


def load_peft(run: str | Path, language: str) -> tuple[Any, Any]:
    """Load a finished run's model with the adapter of one language, and its tokenizer.

    Returns:
        A `peft.PeftModel` over the reference model, and the tokenizer.

    Raises:
        isogloss.errors.RunError: The run is not finished, the language is unknown, or it has no adapter.
    """
    from isogloss.errors import RunError
    from isogloss.languages import UnknownLanguageError, resolve

    try:
        code = resolve(language).code
    except UnknownLanguageError as error:
        raise RunError(str(error)) from None
    from peft import PeftModel

    from isogloss.pipeline.folder import load_run

    job = load_run(Path(run))
    folder = job.folder / "adapters" / code
    if not folder.exists():
        have = ", ".join(sorted(p.name for p in folder.parent.glob("*/")))
        if code in job.families and not have:
            raise RunError(f"{run} has no PEFT adapters, as a bundle; use isogloss.load or `isogloss export`")
        raise RunError(f"{run} has no adapter for {code}; it has {have or 'none'}")
    return PeftModel.from_pretrained(job.reference_model(), str(folder)).eval(), job.tokenizer


def _plain(value: Any) -> Any:
    """JSON encoder fallback for paths and sets."""
    return str(value) if isinstance(value, Path) else list(value)
