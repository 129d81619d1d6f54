"""Check that the files and folders named in the settings exist."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from isogloss.bases import EMBEDDED, PACKAGED, SUFFIX, unavailable
from isogloss.config.base import home
from isogloss.config.data import AnySource, FileData, on_hub
from isogloss.config.distill import ModelTeacher, ServerTeacher
from isogloss.config.evaluate import CLOSED
from isogloss.config.schema import ROOTED, Config
from isogloss.config.yaml_io import Written


def root_of_environment() -> Path | None:
    """Return the data root from the environment variable ISOGLOSS_DATA."""
    given = os.environ.get("ISOGLOSS_DATA")
    return home(Path(given)) if given else None


def is_model_folder(model: str) -> bool:
    """Whether a model is available without the Hub: packaged, or in a local folder."""
    return model in PACKAGED or (Path(model) / "config.json").is_file()


def misplaced(config: Config, written: Written) -> Iterator[str]:
    """Yield an error line for each file, folder or variable that is named in the settings but missing."""

    def fault(name: str, text: str, number: int | None = None) -> str:
        return f"{written.at(_path(name, number))}: {name} {text}"

    def numbered() -> Iterator[tuple[int | None, AnySource]]:
        for number, source in enumerate(config.sources):
            yield number if isinstance(config.data, tuple) else None, source

    if config.run.exists() and not config.run.is_dir():
        yield fault("run", f"is {config.run}, which is a file; name a folder")
    folder = Path(config.model)
    if reason := unavailable(config.model):
        yield fault("model", f"is {config.model}; {reason.removeprefix(config.model + ' ')}")
    elif config.model.endswith(SUFFIX):
        pass
    elif config.model.startswith((".", "/")) and not folder.is_dir():
        yield fault("model", f"is {config.model}; there is no such folder")
    elif folder.is_dir() and config.model != EMBEDDED and not (folder / "config.json").is_file():
        yield fault("model", f"is {config.model}; it has no config.json, which save_pretrained writes")
    for number, source in numbered():
        if isinstance(source, FileData) and not on_hub(source.path) and not source.path.exists():
            yield fault("data.path", f"is {source.path}; there is no such file", number)
    for code in config.languages.amounts:
        if code not in config.languages.targets:
            yield fault("languages.amounts", f"names {code}, which is not among languages.targets")
    if isinstance(config.languages.tree, Path) and not config.languages.tree.is_file():
        shapes = "families, random, flat, shared"
        yield fault("languages.tree", f"is {config.languages.tree}; it is neither a file nor one of {shapes}")
    teacher = config.distill.teacher
    path = teacher.path if isinstance(teacher, ModelTeacher) else ""
    there = Path(path).is_file() if path.endswith(SUFFIX) else is_model_folder(path)
    if path.startswith((".", "/")) and not there:
        yield fault("distill.teacher.path", f"is {path}; there is no model")
    if isinstance(teacher, ServerTeacher) and teacher.key_env and not os.environ.get(teacher.key_env):
        yield fault(
            "distill.teacher.key_env", "names an environment variable that is not set; put the key there"
        )
    if config.distill.texts is not None and not config.distill.texts.is_file():
        yield fault("distill.texts", f"is {config.distill.texts}; there is no such file")
    if config.distill.cache is not None and config.distill.cache.is_file():
        yield fault("distill.cache", f"is {config.distill.cache}, which is a file; name a folder")
    for name in ("xglue", "parallel"):
        if (path := getattr(config.evaluate, name).path) is not None and not path.exists():
            yield fault(f"evaluate.{name}.path", f"is {path}; there is no such file or folder")
    if "parallel" in config.evaluate.suites and config.evaluate.parallel.path is None:
        yield fault("evaluate.suites", "contains parallel, which needs a file; set evaluate.parallel.path")
    root = config.data_root or root_of_environment()
    if root is not None and not root.is_dir():
        if config.data_root is not None:
            yield fault("data_root", f"is {root}; there is no such folder")
        else:
            yield f"ISOGLOSS_DATA is {root}; there is no such folder"
    if root is None:
        way = "needs a data root; set data_root, --data-root or ISOGLOSS_DATA"
        for number, source in numbered():
            if source.type in ROOTED:
                yield fault("data.type", f"{source.type} {way}", number)
        if config.parallel_text:
            yield fault("parallel_text", way)
        for name in config.evaluate.suites:
            if name in ROOTED and not (name == "xglue" and config.evaluate.xglue.path):
                yield fault("evaluate.suites", f"contains {name}, which {way}")


def idle(config: Config, written: Written, only: Collection[str] | None = None) -> Iterator[str]:
    """Yield an error line for each setting of a suite that has no effect with the suites to evaluate.

    Args:
        only: Names of the settings to check; all if not given.
    """
    settings = config.evaluate

    def checked(name: str) -> bool:
        return only is None or any(f"{one}.".startswith(f"evaluate.{name}.") for one in only)

    def fault(name: str, text: str) -> str:
        return f"{written.at(_path(f'evaluate.{name}'))}: evaluate.{name} {text}"

    for suite in settings.likelihood if checked("likelihood") else ():
        if suite not in CLOSED:
            yield fault("likelihood", f"contains {suite}, which has no closed tasks; leave it out")
        elif suite not in settings.suites:
            yield fault("likelihood", f"contains {suite}; add it to evaluate.suites, or leave it out here")
    for suite in ("xglue", "translation", "parallel"):
        options = getattr(settings, suite)
        if checked(suite) and suite not in settings.suites and options != type(options)():
            yield fault(
                suite, f"has no effect unless evaluate.suites contains {suite}; add it, or leave this out"
            )


def _path(name: str, number: int | None = None) -> tuple:
    """Return the path of a setting; `number` is the index of its source in a list."""
    first, *rest = name.split(".")
    return (first, *rest) if number is None else (first, number, *rest)
