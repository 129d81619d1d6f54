"""Cost of each method to reach the same alignment accuracy: `python -m experiments.compare_methods`.

Flow: per seed, stage 1 once → every method from that reference model → levels → rows, in a JSON file
that grows as methods finish, so that a stopped comparison resumes; a plot at the end.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.contest import MEASURES, OURS, Contest, Entry, Point, held_out
from experiments.methods import SAMPLES, settings_of, train
from experiments.plot import draw
from experiments.summary import BEST_RL, OWN_BEST, is_rl, ratios, saving, summary
from isogloss.config import Config, dump_config, parse_config, with_overrides
from isogloss.errors import RunError
from isogloss.files import write_json
from isogloss.pipeline.folder import ProgressReporter, open_run
from isogloss.pipeline.stages import run_tune

LEVELS = (80.0, 85.0, 90.0, 92.3)
REACHED = {"alignment": "reached", "consistency": "reached_consistency"}
"""Measures with levels, and their keys in the rows. The reward does not include retrieval, the other half of
alignment, so consistency is shown too."""
TOKENS = ("tokens_forwarded", "tokens_backpropagated", "tokens_generated")


def compare_methods(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    reporter: ProgressReporter,
    *,
    points: int = 10,
    times: float = 3.0,
) -> dict[str, Any]:
    """Train and evaluate each method; return the contents of `folder/methods.json` and draw `methods.svg`.

    Args:
        methods: Names as for `methods.parse`; ours runs first, as its time limits the others'.
        points: Number of evaluations per method.
        times: Time limit of a method, as a multiple of ours.

    Raises:
        RunError: The folder contains a comparison with other settings.
    """
    file = folder / "methods.json"
    about = {
        "points": points,
        "times": times,
        **{name: settings_of(name, config) for name in ("sft", "dco", "dpo", "grpo", "sft-grpo")},
        "samples": SAMPLES,
    }
    done = _done(file, config, about)
    for seed in seeds:
        left = [name for name in methods if not any((e.method, e.seed) == (name, seed) for e in done)]
        if not left:
            continue
        run = open_run(
            with_overrides(config, [f"seed={seed}", f"run={json.dumps(str(folder / f'seed-{seed}'))}"]),
            reporter,
        )
        held_out(run)  # fail before stage 1 runs in vain
        run_tune(run)
        contest = Contest(run, points=points)
        for name in sorted(left, key=lambda name: name != OURS):
            ours = next((e.seconds for e in done if e.method == OURS and e.seed == seed), None)
            contest.limit = None if ours is None else times * ours
            reporter.say(f"{name}, seed {seed}")
            done.append(train(contest, name))
            write_json(file, table(config, done, about))
    found = table(config, done, about)
    write_json(file, found)  # an earlier one may say less
    draw(found["rows"], folder / "methods.svg")
    return found


def table(config: Config, entries: Sequence[Entry], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparison as JSON: a row per method and seed, then a summary over the seeds.

    Args:
        about: Further parameters of the comparison.
    """
    rows = [_row(entry, [other for other in entries if other.seed == entry.seed]) for entry in entries]
    return {
        "schema": 1,
        "isogloss": version("isogloss"),
        "trl": version("trl"),
        "contest": dict(about),
        "settings": dump_config(config),
        "rows": rows,
        "summary": summary(rows),
        "saving": saving(rows),
    }


def _row(entry: Entry, same_seed: Sequence[Entry]) -> dict[str, Any]:
    """Return a method's row, with our costs for comparison.

    `ours` is our cost to reach each of its levels. For a level that the method never reached, `not_within` is
    the ratio of its total cost to ours; null if ours did not reach it either, or the method has no cost.
    """
    levels = {name: _levels(entry, same_seed, name) for name in REACHED}
    reached = {
        key: {level: entry.reached(value, name) for level, value in levels[name].items()}
        for name, key in REACHED.items()
    }
    us = next((other for other in same_seed if other.method == OURS), None)
    ours = {level: us.reached(value) if us else None for level, value in levels["alignment"].items()}
    spent = {"flops": entry.flops, "seconds": entry.seconds}
    missed = [level for level, cost in reached["reached"].items() if cost is None]
    last = entry.points[-1].scores if entry.points else {}
    return {
        "method": entry.method,
        "seed": entry.seed,
        **spent,
        **{name: getattr(entry, name) for name in TOKENS},
        "ended": entry.ended,
        **{name: last.get(name) for name in (*MEASURES, "retention")},
        "levels": levels["alignment"],
        **reached,
        "ours": ours,
        "not_within": {
            level: ratios(spent, cost) if (cost := ours[level]) and entry.flops else None for level in missed
        },
        "points": [asdict(point) for point in entry.points],
    }


def _levels(entry: Entry, same_seed: Sequence[Entry], measure: str) -> dict[str, float]:
    levels = {f"{level:g}": level / 100 for level in LEVELS}
    if learners := [other.best(measure) for other in same_seed if is_rl(other.method)]:
        levels[BEST_RL] = max(learners)
    return levels | {OWN_BEST: entry.best(measure)}


def _done(file: Path, config: Config, about: Mapping[str, Any]) -> list[Entry]:
    """Load the entries of an earlier, stopped comparison; fields missing there get their defaults."""
    if not file.exists():
        return []
    before = json.loads(file.read_text("utf-8"))
    if (parse_config(before["settings"]), before.get("contest")) != (config, about):
        raise RunError(f"{file} was made with other settings; choose another folder with --out")
    names = {one.name for one in fields(Entry)} - {"points"}
    return [
        Entry(points=[Point(**point) for point in row["points"]], **{n: row[n] for n in names & set(row)})
        for row in before["rows"]
    ]
