"""Export a run's scores in the results format of lm-evaluation-harness 0.4.

A results file describes one model, so each side (before, after) gets its own. A task is a suite in one
language, a group is a suite; metrics are isogloss measures, with `acc` for accuracy. Fields that only the
harness can fill (its seeds, hashes of its samples) are null or empty.
"""

import hashlib
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any, Final, Literal

from isogloss.data.chat import end_of_turn
from isogloss.errors import RunError
from isogloss.evaluate.signature import fields_of
from isogloss.files import read_json, write_json
from isogloss.model.load import skeleton
from isogloss.pipeline.folder import Run
from isogloss.report.folder import read_folder

Phase = Literal["before", "after"]
NAMES: Final = {"accuracy": "acc"}
"""The harness's names of isogloss measures, where it has them."""


def write_results(run: Run, folder: Path) -> list[Path]:
    """Write `folder/<phase>/results_<date>.json` for both sides and return the files.

    Raises:
        RunError: The run has no scores, or the per-item hits are missing.
    """
    sides = {folder / phase: results(run, phase) for phase in ("before", "after")}
    files = []
    for path, found in sides.items():
        date = datetime.fromtimestamp(found["date"]).isoformat().replace(":", "-")
        files.append(path / f"results_{date}.json")
        write_json(files[-1], found)
    return files


def results(run: Run, phase: Phase) -> dict[str, Any]:
    """Return one side of all suites in `scores.json`, as the contents of a harness results file.

    Only single languages have standard errors: sample standard deviation over √items, as in the harness.

    Raises:
        RunError: The run has no scores, or the per-item hits are missing.
    """
    tasks: dict[str, Any] = {}
    groups, members, signatures = {}, {}, {}
    for suite, scores in read_folder(run.folder).scores["suites"].items():
        hits = _hits(run, suite, phase)
        for code in scores["languages"]:
            its = {_name(measure): rows[code] for measure, rows in hits.items() if code in rows}
            if its:
                tasks[f"{suite}_{code}"] = its
                members.setdefault(suite, []).append(f"{suite}_{code}")
                signatures[f"{suite}_{code}"] = scores["signature"]
        means = {
            _name(measure): (one["mean"], "N/A") for measure, one in scores[phase].items() if measure in hits
        }
        groups[suite] = _entry(suite, means)
    entries = {
        task: _entry(task, {name: (mean(rows), _error(rows)) for name, rows in its.items()})
        | {"sample_len": _count(its)}
        for task, its in tasks.items()
    }
    return {
        "results": groups | entries,
        "groups": groups,
        "group_subtasks": members,
        "configs": {task: _config(task, its, signatures[task]) for task, its in tasks.items()},
        "versions": {task: fields_of(signature)["rev"] for task, signature in signatures.items()},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: dict.fromkeys(its, True) for task, its in tasks.items()},
        "n-samples": {
            task: {"original": _count(its), "effective": _count(its)} for task, its in tasks.items()
        },
        **_about(run, phase),
    }


def _hits(run: Run, suite: str, phase: Phase) -> dict[str, dict[str, list[float]]]:
    """Return each item's or sentence's score by measure and language, leaving out undefined ones."""
    path = run.folder / "predictions" / f"{suite}.{phase}.hits.json"
    if not path.is_file():
        raise RunError(f"{path} is missing; run `isogloss evaluate` again, which writes it")
    hits = read_json(path, "hits", "remove scores.json and run `isogloss evaluate` again")["hits"]
    scores = {
        measure: {code: [h for h in row if h is not None] for code, row in by_language.items()}
        for measure, by_language in hits.items()
    }
    return {measure: {c: row for c, row in by.items() if row} for measure, by in scores.items()}


def _name(measure: str) -> str:
    return NAMES.get(measure, measure)


def _count(hits: dict[str, list[float]]) -> int:
    return max(map(len, hits.values()))


def _error(hits: list[float]) -> float | str:
    if len(hits) < 2:
        return "N/A"
    # Same order of summation as the harness, so that equal answers give bit-identical errors.
    middle = sum(hits) / len(hits)
    return sqrt(sum((hit - middle) ** 2 for hit in hits) / (len(hits) - 1)) / sqrt(len(hits))


def _entry(name: str, metrics: Mapping[str, tuple[float, float | str]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "alias": name}
    for metric, (value, error) in metrics.items():
        entry |= {f"{metric},none": value, f"{metric}_stderr,none": error}
    return entry


def _config(task: str, hits: dict[str, list[float]], signature: str) -> dict[str, Any]:
    kind = "multiple_choice" if fields_of(signature)["scoring"] == "likelihood" else "generate_until"
    return {
        "task": task,
        "output_type": kind,
        "num_fewshot": 0,
        "repeats": 1,
        "metric_list": [{"metric": name} for name in hits],
        "metadata": {"version": fields_of(signature)["rev"], "signature": signature},
    }


def _about(run: Run, phase: Phase) -> dict[str, Any]:
    """Return the fields about the model and the environment."""
    model, tokenizer = skeleton(str(run.tuned)), run.tokenizer
    adapters = run.folder / "adapters"
    name, peft = (run.tuned, {}) if phase == "before" else (adapters, {"peft": str(adapters)})
    template = tokenizer.get_chat_template()
    evaluated = run.ledger.stages.get("evaluate")
    tokens = {
        f"tokenizer_{kind}_token": [
            getattr(tokenizer, f"{kind}_token"),
            str(getattr(tokenizer, f"{kind}_token_id")),
        ]
        for kind in ("pad", "eos", "bos")
    }
    return {
        "config": {
            "model": "isogloss",
            "model_args": {"pretrained": str(run.tuned), **peft},
            **({"peft_sha": ""} if peft else {}),
            "model_num_parameters": sum(p.numel() for p in model.parameters()),
            "model_dtype": str(run.dtype),
            "model_revision": "main",
            "model_sha": "",
            "batch_size": str(run.config.evaluate.batch_size),
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": run.config.evaluate.items,
            "bootstrap_iters": 0,
            "gen_kwargs": {},
            "random_seed": run.config.seed,
            "numpy_seed": None,
            "torch_seed": None,
            "fewshot_seed": None,
        },
        "git_hash": None,
        "date": (run.folder / "scores.json").stat().st_mtime,
        "pretty_env_info": f"torch {version('torch')}, Python {platform.python_version()}",
        "transformers_version": version("transformers"),
        "lm_eval_version": f"isogloss {version('isogloss')}",
        "upper_git_hash": None,
        **tokens,
        "eot_token_id": tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)),
        "max_length": getattr(model.config.get_text_config(), "max_position_embeddings", None),
        "task_hashes": {},
        "model_source": "isogloss",
        "model_name": str(name),
        "model_name_sanitized": str(name).replace("/", "__"),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": template,
        "chat_template_sha": hashlib.sha256(template.encode()).hexdigest(),
        "total_evaluation_time_seconds": str(evaluated.seconds if evaluated else 0.0),
    }
