"""Evaluation of a run before and after training, with a signature of how each score was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isogloss.errors import ConfigError, DataError, RunError
from isogloss.evaluate import retrieval, tasks, transfer
from isogloss.evaluate.gain import Gain, gains
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.signature import data_hashes, fields_of
from isogloss.evaluate.suites import load_suite
from isogloss.files import read_json, write_json
from isogloss.languages import SOURCE
from isogloss.model.cost import StageCost, spending
from isogloss.pipeline.checks import tell_of_leaks
from isogloss.pipeline.folder import Run, writing
from isogloss.pipeline.suite_scores import (
    by_place,
    deciding,
    how_measured,
    is_of_run,
    measuring,
    score_after,
    shared_before,
    write_side,
)
from isogloss.teacher.texts import node_texts


@writing
def run_evaluate(run: Run, kept: Path | None = None) -> None:
    """Evaluate the run before and after training; write `scores.json` and `predictions/`.

    Args:
        kept: Folder in which runs with the same reference model share its scores, so that it is evaluated
            once.
    """
    settings, scores, file = run.config.evaluate, scores_of_run(run), run.folder / "scores.json"
    with run.reporter.waiting("Reading the suites"):
        loaded = {name: load_suite(name, run.data_root, settings, run.measured) for name in settings.suites}
    missing = unscored(run, scores, loaded)
    if not missing:
        return
    tell_of_leaks(run)
    for name in [name for name, suite in scores["suites"].items() if not is_of_run(run, name, suite)]:
        del scores["suites"][name]
        if name not in missing:
            run.reporter.say(
                f"{name} was scored with another model or other measures; its scores are dropped"
            )
    scores["isogloss"] = version("isogloss")
    if file.exists():  # write it without the dropped scores
        write_json(file, scores | {"summary": _summary(run, scores)})
    model = run.reference_model()
    plain = retrieval.Model(model, run.tokenizer)
    stage = run.ledger.begin("evaluate")
    # Added to the ledger when a suite's scores are written: a killed run evaluates the suite again.
    costs, found = {name: StageCost("evaluate") for name in missing}, {}
    for name in missing:
        with spending(costs[name], model):
            found[name] = shared_before(run, plain, loaded[name], kept)
    adapters = run.student(model, trained=True)
    aligned = retrieval.Model(model, run.tokenizer, adapters)
    for name in missing:
        # Drop the suite's scores until both sides are rewritten, so that they never mix old and new answers.
        if scores["suites"].pop(name, None):
            write_json(file, scores | {"summary": {}})
        write_side(run, loaded[name], "before", found[name].side)
        with spending(costs[name], adapters.model, adapters.met):
            scores["suites"][name] = score_after(run, aligned, plain, loaded[name], found[name])
        scores["summary"] = _summary(run, scores)
        write_json(file, scores)
        stage.take(costs[name])
        run.ledger.pause(stage)
    if others := scores["suites"].keys() - set(_of_split(run, scores)):
        run.reporter.say(
            f"The summary leaves out {', '.join(sorted(others))}: not scored on the {settings.split} split"
        )


def teacher_gains(run: Run, suites: Sequence[str], items: int) -> list[Gain]:
    """Measure what each kind of prompt adds in context, on dev items of some suites; see `evaluate.gain`.

    Args:
        items: Maximum number of items per suite.

    Raises:
        RunError: Stage 1 has not been run.
        DataError: No suite has items that can be compared with an English answer.
    """
    held_out = run.config.evaluate.model_copy(update={"split": "dev"})
    asked = [
        item
        for name in suites
        for item in load_suite(name, run.data_root, held_out, run.taught, items).items
        if SOURCE in item.turns and "consistency" in item.measures
    ]
    if not asked:
        raise DataError(
            f"{', '.join(suites)}: no item can be compared with an English answer; use other suites"
        )
    model = run.reference_model()
    with run.reporter.bar("Gain in context") as progress:
        return gains(
            model,
            run.tokenizer,
            asked,
            run.taught,
            node_texts(run.config),
            run.tree,
            batch=held_out.batch_size,
            max_new_tokens=held_out.max_new_tokens,
            seed=run.config.seed,
            progress=progress,
        )


@writing
def run_transfer(run: Run, languages: Sequence[str], suites: Sequence[str]) -> list[transfer.Reading]:
    """Evaluate untaught languages with the tree's nodes; write `transfer.json`; see `evaluate.transfer`.

    Raises:
        RunError: Stage 2 has not been run, or no family of the tree has adapter rows.
        ConfigError: A language was taught.
        DataError: No suite has one of the languages.
    """
    if taught := [code for code in languages if code in (SOURCE, *run.taught)]:
        raise ConfigError(f"{', '.join(taught)} was taught; choose languages that the run was not trained on")
    loaded = [load_suite(name, run.data_root, run.config.evaluate, languages) for name in suites]
    model = run.reference_model()
    adapters = run.student(model, trained=True)
    if not any(node.level == "family" and node.rank for node in adapters.tree.nodes):
        raise RunError(
            f"{run.folder}: no family of its tree has adapter rows "
            f"(languages.tree {run.config.languages.tree})"
        )
    plain, found = retrieval.Model(model, run.tokenizer), []
    for suite in loaded:
        with run.reporter.bar(f"{suite.name}: untaught languages") as progress:
            found += transfer.readings(
                plain, adapters, suite, languages, run.config.evaluate, run.config.seed, progress
            )
    if not found:
        raise DataError(f"{', '.join(suites)} has none of {', '.join(languages)}")
    made = [asdict(one) for one in transfer.transfers(found, run.config.seed)]
    write_json(run.folder / "transfer.json", {"transfers": made, "readings": [asdict(one) for one in found]})
    return found


def _of_split(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """Return the suites that were scored on the configured split."""
    split = run.config.evaluate.split
    return [name for name, suite in scores["suites"].items() if suite["settings"]["split"] == split]


def _summary(run: Run, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the run's scores over its suites from the hits files in `predictions/`.

    Suites scored on another split than the configured one are left out: dev and test do not mix.
    """
    suites = {name: scores["suites"][name] for name in _of_split(run, scores)}

    def read(phase: str) -> dict[str, tasks.SuiteHits]:
        found = {}
        for name in suites:
            kept = _kept_hits(run, name, phase)
            sentences = [by_place(kept["hits"].get(m, {})) for m in ("retrieval", "retrieval_raw")]
            found[name] = tasks.SuiteHits(kept.get("tasks", {}), *sentences)
        return found

    mastered = {
        f"{name}/{task}"
        for name, suite in suites.items()
        for task, one in suite["english"].get("tasks", {}).items()
        if one["mastered"]
    }
    low = [code for code in run.measured if run.config.languages.is_low(code)]
    return tasks.summary(read("before"), read("after"), mastered, low=low, seed=run.config.seed)


def scores_of_run(run: Run) -> dict:
    """Read `scores.json`; return it without suites before the first evaluation."""
    file = run.folder / "scores.json"
    if file.exists():
        return read_json(file, "suites", "remove it and run `isogloss evaluate` again")
    return {"schema": 1, "isogloss": version("isogloss"), "summary": {}, "suites": {}}


def unscored(run: Run, scores: dict, loaded: Mapping[str, SuiteData] | None = None) -> list[str]:
    """Return the configured suites without scores, or with scores of another model, settings or data.

    Args:
        loaded: Suites by name, to compare their data too.
    """

    def done(name: str) -> bool:
        suite = scores["suites"].get(name)
        if suite is None or deciding(suite["settings"], name) != deciding(how_measured(run, name), name):
            return False
        signed, now = fields_of(suite["signature"]), measuring(run, name)
        if loaded and name in loaded and _data_of(run, name) != data_hashes(loaded[name]):
            return False
        return all(signed.get(field) == value for field, value in now.items())

    return [name for name in run.config.evaluate.suites if not done(name)]


def _data_of(run: Run, suite: str) -> dict[str, str]:
    """Return by language the hash of the texts that a suite was scored on; empty if not recorded."""
    try:
        return _kept_hits(run, suite, "after").get("data", {})
    except FileNotFoundError:
        return {}


def _kept_hits(run: Run, suite: str, phase: str) -> dict[str, Any]:
    file = run.folder / "predictions" / f"{suite}.{phase}.hits.json"
    return read_json(file, "hits", "remove scores.json and run `isogloss evaluate` again")
