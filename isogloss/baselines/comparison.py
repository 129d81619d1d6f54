"""What each method costs to reach the same alignment accuracy: `isogloss compare-methods`.

Flow: per seed, stage 1 once → every method from that reference model → levels → rows, in a JSON file
that grows as methods end, so that a stopped comparison goes on; a plot at the end.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isogloss.baselines.contest import MEASURES, OURS, Contest, Entry, Point
from isogloss.baselines.methods import DPO, GRPO, METHODS, SAMPLES, SFT
from isogloss.baselines.plot import draw
from isogloss.config import Config, dump_config, with_overrides
from isogloss.errors import RunError
from isogloss.files import write_json
from isogloss.pipeline import Watcher, open_run, run_tune

RL = ("dpo", "grpo", "sft-grpo")
LEVELS = (80.0, 85.0, 90.0, 92.3)
BEST_RL = "best-rl"
REACHED = {"alignment": "reached", "consistency": "reached_consistency"}
"""Measures whose levels are looked for, and what the rows call them. The reward is blind to retrieval, the
other half of alignment, so consistency is shown too."""


def compare_methods(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    watcher: Watcher,
    *,
    points: int = 10,
    times: float = 3.0,
) -> dict[str, Any]:
    """Train and measure each method; returns what `folder/methods.json` holds, and draws `methods.svg`.

    Args:
        methods: Names of `METHODS`; ours goes first, as its time bounds the others'.
        points: Measurements along each method's way.
        times: A method is stopped after so many times our seconds.

    Raises:
        RunError: The folder holds a comparison made with other settings.
    """
    file = folder / "methods.json"
    about = {"points": points, "times": times, "sft": SFT, "dpo": DPO, "grpo": GRPO, "samples": SAMPLES}
    done = _done(file, config, about)
    for seed in seeds:
        run = open_run(
            with_overrides(config, [f"seed={seed}", f"run={json.dumps(str(folder / f'seed-{seed}'))}"]),
            watcher,
        )
        run_tune(run)
        contest: Contest | None = None
        for name in sorted(methods, key=lambda name: name != OURS):
            if any(entry.method == name and entry.seed == seed for entry in done):
                continue
            contest = contest or Contest(run, points=points)
            ours = next((e.seconds for e in done if e.method == OURS and e.seed == seed), None)
            contest.limit = None if ours is None else times * ours
            watcher.say(f"{name}, seed {seed}")
            done.append(METHODS[name](contest))
            write_json(file, table(config, done, about))
    found = table(config, done, about)
    draw(found["rows"], folder / "methods.svg")
    return found


def table(config: Config, entries: Sequence[Entry], about: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison as JSON: a row per method and seed; `about` is what else it was made with."""
    rows = []
    for entry in entries:
        same_seed = [other for other in entries if other.seed == entry.seed]
        levels = {name: {f"{level:g}": level / 100 for level in LEVELS} for name in REACHED}
        for name in REACHED:
            if learners := [other.best(name) for other in same_seed if other.method in RL]:
                levels[name][BEST_RL] = max(learners)
        last = entry.points[-1].scores if entry.points else {}
        rows.append(
            {
                "method": entry.method, "seed": entry.seed, "flops": entry.flops, "seconds": entry.seconds,
                "tokens_forwarded": entry.tokens_forwarded,
                "tokens_backpropagated": entry.tokens_backpropagated, "ended": entry.ended,
                **{name: last.get(name) for name in (*MEASURES, "retention")},
                "levels": levels["alignment"],
                **{
                    key: {level: entry.reached(value, name) for level, value in levels[name].items()}
                    for name, key in REACHED.items()
                },
                "points": [asdict(point) for point in entry.points],
            }
        )  # fmt: skip
    return {
        "schema": 1, "isogloss": version("isogloss"), "trl": version("trl"), "contest": dict(about),
        "settings": dump_config(config), "rows": rows,
    }  # fmt: skip


def _done(file: Path, config: Config, about: Mapping[str, Any]) -> list[Entry]:
    """Methods that an earlier, stopped comparison has measured."""
    if not file.exists():
        return []
    before = json.loads(file.read_text("utf-8"))
    if (before["settings"], before.get("contest")) != (dump_config(config), about):
        raise RunError(f"{file} was made with other settings; name another folder by --out")
    return [
        Entry(
            row["method"], row["seed"], [Point(**point) for point in row["points"]], row["flops"],
            row["seconds"], row["tokens_forwarded"], row["tokens_backpropagated"], row["ended"],
        )
        for row in before["rows"]
    ]  # fmt: skip
