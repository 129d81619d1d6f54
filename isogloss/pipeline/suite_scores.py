"""Scores of one suite: the reference model before, the aligned model after, and their files."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isogloss.config import Evaluate
from isogloss.evaluate import estimates, retrieval, runner, tasks
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.signature import RULER, data_hashes, fields_of, settings_fields, signature
from isogloss.evaluate.suites import SUITES
from isogloss.files import content_hash, write_json, write_lines, write_text
from isogloss.languages import SOURCE
from isogloss.pipeline.folder import Run


@dataclass
class Before:
    """Results of the reference model on a suite, including what the aligned model is compared with."""

    side: runner.Side
    english: runner.Given
    mastery: dict[str, tasks.Mastery]
    retriever: retrieval.Retriever | None
    family: dict[str, Any]


def shared_before(run: Run, plain: retrieval.Model, suite: SuiteData, kept: Path | None) -> Before:
    """Return `score_before`, loaded from a folder shared with other runs if it was measured there.

    Args:
        kept: The shared folder, or None to share nothing.
    """
    if kept is None:
        return score_before(run, plain, suite)
    asked = fields_of(suite_signature(run, suite, None, None)) | data_hashes(suite)
    asked |= {"adapters": "", "layer": str(run.config.evaluate.layer)}
    name = hashlib.sha256(signature(asked).encode()).hexdigest()[:16]
    file = kept / f"{suite.name}-{name}.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    made = score_before(run, plain, suite)
    kept.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")  # other runs may write at the same time
    part.write_bytes(pickle.dumps(made))
    part.replace(file)
    return made


def score_before(run: Run, plain: retrieval.Model, suite: SuiteData) -> Before:
    """Evaluate the reference model on a suite."""
    settings = run.config.evaluate
    english, rephrased = runner.Given([], []), {}
    if suite.items:
        with run.reporter.bar(f"{suite.name}: English") as progress:
            english = runner.english_answers(plain, suite, settings, progress)
            rephrased = runner.rephrased_answers(plain, suite, english.texts, settings, progress)
    mastery = runner.mastery_by_task(suite, english.texts, rephrased)
    mastered = [task for task, one in mastery.items() if one.mastered]
    side, retriever = _side(run, plain, plain, suite, english.texts, mastered, "before")
    side.by_task["accuracy"] = _with_english(suite, side, english)
    family = runner.family(suite, english.texts, english.rankings, side, run.config.seed)
    return Before(side, english, mastery, retriever, family)


def score_after(
    run: Run, aligned: retrieval.Model, plain: retrieval.Model, suite: SuiteData, before: Before
) -> dict:
    """Evaluate the aligned model on a suite; return the suite's entry in `scores.json`, with both sides."""
    settings, languages = run.config.evaluate, in_suite(suite, run.measured)
    mastered = [task for task, one in before.mastery.items() if one.mastered]
    side, retriever = _side(run, aligned, plain, suite, before.english.texts, mastered, "after")
    after, given = dict(side.scores), runner.Given([], [])
    if suite.items:
        with run.reporter.bar(f"{suite.name}: English after") as progress:
            given = runner.english_answers(aligned, suite, settings, progress)
    right = runner.english_right(suite, before.english.texts)
    if right:
        now = runner.english_right(suite, given.texts)
        after["retention"] = estimates.retention(right, now, run.config.seed)
    side.by_task["accuracy"] = _with_english(suite, side, given)
    write_side(run, suite, "after", side)
    sides = {"before": (before.english, before.side), "after": (given, side)}
    more = {phase: _official(run, suite, phase, own.texts, one) for phase, (own, one) in sides.items()}
    family = runner.family(suite, given.texts, given.rankings, side, run.config.seed)
    accuracy = {"accuracy": sum(right) / len(right)} if right else {}
    return {
        "signature": suite_signature(run, suite, before.retriever, retriever),
        "settings": how_measured(run, suite.name),
        "languages": list(languages),
        "before": before.side.scores,
        "after": after,
        "spread": {"before": estimates.spreads(before.side.scores), "after": estimates.spreads(after)},
        "tasks": {"before": before.side.tasks, "after": side.tasks},
        "kappa": {"before": before.side.kappa, "after": side.kappa},
        "english": accuracy | {"tasks": {task: one.plain() for task, one in before.mastery.items()}},
        "layer": {"before": _layers(before.retriever), "after": _layers(retriever)},
        "notes": [*_notes(suite, run, languages), *suite.notes],
        "family": {"before": before.family, "after": family},
        "unreadable": {"before": before.side.unreadable, "after": side.unreadable},
        "cut": {
            phase: runner.cut_shares([SOURCE] * len(own.cut), own.cut) | one.cut
            for phase, (own, one) in sides.items()
        },
        **({"official": more} if suite.score else {}),
    }


def _side(
    run: Run,
    subject: retrieval.Model,
    plain: retrieval.Model,
    suite: SuiteData,
    english: Sequence[str],
    mastered: Sequence[str],
    phase: str,
) -> tuple[runner.Side, retrieval.Retriever | None]:
    """Evaluate one side; return its scores, with means over tasks, and the retriever of its sentences."""
    settings, seed, retriever = run.config.evaluate, run.config.seed, None
    if suite.sentences:
        with run.reporter.bar(f"{suite.name}: layer {phase}") as progress:
            retriever = retrieval.retriever(subject, plain, suite, settings, progress)
    with run.reporter.bar(f"{suite.name}: {phase}") as progress:
        languages = in_suite(suite, run.measured)
        side = runner.evaluate_side(subject, suite, languages, english, retriever, settings, seed, progress)
    side.scores |= tasks.suite_means(
        side.by_task["consistency"], by_place(side.hits.get("retrieval", {})), mastered, seed=seed
    )
    return side, retriever


def _with_english(
    suite: SuiteData, side: runner.Side, english: runner.Given
) -> dict[str, dict[str, dict[str, float]]]:
    """Return accuracy by task, language and item, with English among the languages."""
    found = {task: dict(by_language) for task, by_language in side.by_task["accuracy"].items()}
    for task, hits in runner.english_hits(suite, english.texts).items():
        found.setdefault(task, {})[SOURCE] = {id: float(hit) for id, hit in hits.items()}
    return found


def by_place(hits: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Key the hits by sentence index, which identifies a sentence in every language."""
    return {code: {str(n): float(hit) for n, hit in enumerate(row)} for code, row in hits.items()}


def _layers(retriever: retrieval.Retriever | None) -> dict[str, Any]:
    if retriever is None:
        return {}
    return {
        "retrieval": retriever.layer,
        "retrieval_raw": retriever.raw_layer,
        "kind": retriever.kind,
        "statistics": retriever.sentences if retriever.statistics else 0,
    }


def _official(
    run: Run, suite: SuiteData, phase: str, english: Sequence[str], side: runner.Side
) -> dict[str, Any]:
    """Compute the benchmark's official metrics and write its prediction files beside the answers."""
    if suite.score is None:
        return {}
    answered: dict[str, dict[str, str]] = {
        SOURCE: {item.id: text for item, text in zip(runner.twinned(suite), english, strict=True)}
    }
    for row in side.predictions:
        answered.setdefault(row["language"], {})[row["id"]] = row["answer"]
    found = suite.score(answered)
    folder = run.folder / "predictions" / f"{suite.name}.{phase}"
    shutil.rmtree(folder, ignore_errors=True)  # it may hold tasks or languages that are measured no longer
    for name, text in found.files.items():
        write_text(folder / name, text)
    return found.plain()


def write_side(run: Run, suite: SuiteData, phase: str, side: runner.Side) -> None:
    """Write the answers of one side (`before` or `after`), and what was hit, to `predictions/`."""
    stem = run.folder / "predictions" / f"{suite.name}.{phase}"
    write_lines(stem.with_name(stem.name + ".jsonl"), side.predictions)
    hits = {
        # Retrieval in only one of two directions counts 0.5; null if a measure does not apply to an answer.
        name: {code: [int(h) if isinstance(h, bool) else h for h in row] for code, row in hits.items()}
        for name, hits in side.hits.items()
    }
    found = {"items": [item.id for item in suite.items], "data": data_hashes(suite)}
    found |= {"hits": hits, "ids": side.ids, "tasks": side.by_task}
    write_json(stem.with_name(stem.name + ".hits.json"), found)


def in_suite(suite: SuiteData, languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages that the suite has, in order."""
    have = {code for item in suite.items for code in item.turns} | set(suite.sentences)
    return tuple(code for code in languages if code in have)


def _notes(suite: SuiteData, run: Run, languages: Sequence[str]) -> list[str]:
    missing = [code for code in run.measured if code not in languages]
    notes = [
        f"{code} was not taught; it uses the adapter of {run.tree.path(code)[-1].name}."
        for code in languages
        if code not in run.taught
    ]
    if missing:
        notes.append(f"{suite.name} has no {', '.join(missing)}: excluded from every mean of this suite.")
    return notes


def suite_signature(
    run: Run, suite: SuiteData, before: retrieval.Retriever | None, after: retrieval.Retriever | None
) -> str:
    """Return everything that a suite's scores depend on, in one line."""
    return signature(
        {
            "suite": suite.name,
            "rev": suite.revision,
            "split": suite.split,
            "items": len(suite.items),
            "sentences": len(suite.sentences.get(SOURCE, ())),
            **measuring(run, suite.name),
            "data": data_hashes(suite)[SOURCE],
            "layer_from": f"settings-{layer}" if (layer := run.config.evaluate.layer) else "sentences",
            **_how_retrieved(before, after),
            "seed": run.config.seed,
            "isogloss": version("isogloss"),
        }
    )


def measuring(run: Run, suite: str) -> dict[str, str]:
    """Return the signature fields that are known without the suite's data: the model and the settings."""
    scoring = "likelihood" if suite in run.config.evaluate.likelihood else "generation"
    who = run.answering if run.tuned.exists() else {}  # model and adapters may be deleted to save space
    adapters = {"adapters": content_hash([run.trained])} if run.trained.exists() else {}
    settings = settings_fields(how_measured(run, suite))
    return {"scoring": scoring, **settings, **who, **adapters, "ruler": str(RULER)}


def is_of_run(run: Run, name: str, suite: Mapping[str, Any]) -> bool:
    """Return whether a suite was scored with the run's current model and adapters, by current measures."""
    signed, now = fields_of(suite["signature"]), measuring(run, name)
    who = ("model", "template", "dtype", "adapters", "ruler")
    return all(signed.get(field) == now.get(field) for field in who)


def _how_retrieved(before: retrieval.Retriever | None, after: retrieval.Retriever | None) -> dict[str, Any]:
    """Return the signature fields of retrieval: kind, layers before and after, source of the statistics."""
    if before is None or after is None:
        return {}
    found: dict[str, Any] = {"retrieval": before.kind, "layer": f"{before.layer}/{after.layer}"}
    if before.statistics is not None:
        found["statistics"] = f"own-{before.sentences}"  # each side's own states of that many sentences
    return found | {"raw_layer": f"{before.raw_layer}/{after.raw_layer}"}


def how_measured(run: Run, suite: str) -> dict:
    """Return the settings that a suite is measured with."""
    others = (SUITES.keys() & Evaluate.model_fields.keys()) - {suite}  # settings of other suites
    how = run.config.evaluate.model_dump(mode="json", exclude={"suites", "also", *others})
    return how | {"languages": list(run.measured)}


def deciding(how: Mapping[str, Any], suite: str) -> dict[str, Any]:
    """Return the settings of `how_measured` that decide a suite's scores."""
    kept = {name: value for name, value in how.items() if name != "batch_size"}
    return kept | {"likelihood": suite in how.get("likelihood", ())}
