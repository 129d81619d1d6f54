"""Every method on the same work, through the command line, with trl's own trainers."""

import json

import pytest

pytest.importorskip("trl", reason="the baselines need the extra isogloss[rl]")

from isogloss.baselines import comparison
from isogloss.baselines.contest import Entry, Point
from isogloss.cli import main
from isogloss.config import load_config

METHODS = (
    "isogloss",
    "reference",
    "flat",
    "shared",
    "sft",
    "sft-languages",
    "sequence",
    "dpo",
    "grpo",
    "sft-grpo",
)


def leave(command: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(command)
    return exit_.value.code


@pytest.mark.filterwarnings("ignore")  # trl's and transformers' own
def test_every_method_is_trained_and_measured_and_a_stopped_comparison_goes_on(base, tmp_path, capsys):
    """Points lie at growing cost; ours is measured as often; a second call does nothing again."""
    folder = tmp_path / "out"
    settings = (
        f"model={base}", f"run={tmp_path / 'unused'}", "dtype=float32", "data.english_items=16",
        "tune.epochs=1", "tune.batch=8", "languages.targets=[es,sw]",
        "languages.items={high: 8, middle: 8, low: 8}", "distill.epochs=2", "distill.batch=8",
        "distill.max_prompt=2000", "distill.carrier.targets=[q_proj,down_proj]", "evaluate.split=dev",
        "evaluate.items=7", "evaluate.sentences=6", "evaluate.max_new_tokens=4",
    )  # fmt: skip
    command = ["compare-methods", "--points", "2", "--times", "1000", "--out", str(folder)]
    command += [part for one in settings for part in ("--set", one)]
    assert leave([*command, "--method", "sft"]) == 0  # ours comes first, asked for or not
    assert [r["method"] for r in json.loads((folder / "methods.json").read_text())["rows"]] == [
        "isogloss", "sft",
    ]  # fmt: skip
    assert leave(command) == 0
    assert "sft-grpo" in capsys.readouterr().out
    rows = {row["method"]: row for row in json.loads((folder / "methods.json").read_text())["rows"]}
    assert set(rows) == set(METHODS)
    reference = rows.pop("reference")
    assert (reference["flops"], reference["ended"], len(reference["points"])) == (0, "not trained", 1)
    for name, row in rows.items():
        steps, flops = [p["step"] for p in row["points"]], [p["flops"] for p in row["points"]]
        assert steps == sorted(steps) and len(steps) >= 2, name
        assert 0 < flops[0] < flops[-1] <= row["flops"], name
        assert row["ended"] == "trained as long as the others"
        assert set(row["reached"]) == {"80", "85", "90", "92.3", "best-rl"} == set(row["reached_consistency"])
        assert 0 <= row["alignment"] <= 1 and -1 <= row["retention"] <= 1
    # A group of eight answers is drawn for each prompt before a step on them.
    assert rows["grpo"]["tokens_forwarded"] > 1.5 * rows["grpo"]["tokens_backpropagated"]
    drawn = (folder / "methods.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in rows)
    before = (folder / "methods.json").read_bytes()
    assert leave(command) == 0
    assert (folder / "methods.json").read_bytes() == before
    assert leave([*command, "--set", "seed=1"]) == 2
    assert leave([*command, "--points", "3"]) == 2
    assert (folder / "methods.json").read_bytes() == before


def test_an_unknown_method_is_refused(tmp_path, capsys):
    assert leave(["compare-methods", "--method", "ppo", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        "--method ppo: there are isogloss, reference, flat, shared, sft, sft-languages, sequence, dpo" in said
    )
    assert list(tmp_path.iterdir()) == []


def test_levels_are_reached_at_the_first_point_that_has_them():
    """Literal points; `best-rl` is the best that any RL method has at any point, by seed."""

    def entry(method: str, *found: float) -> Entry:
        points = [
            Point(n, 10.0 * n, float(n), {"alignment": a, "consistency": a - 0.1})
            for n, a in enumerate(found, start=1)
        ]
        return Entry(method, 0, points)

    made = comparison.table(
        load_config(),
        [entry("isogloss", 0.7, 0.84, 0.91), entry("grpo", 0.5, 0.83, 0.81), entry("dpo", 0.6)],
        {"points": 3},
    )
    ours, grpo, dpo = (row["reached"] for row in made["rows"])
    assert ours == {
        "80": {"flops": 20.0, "seconds": 2.0}, "85": {"flops": 30.0, "seconds": 3.0},
        "90": {"flops": 30.0, "seconds": 3.0}, "92.3": None, "best-rl": {"flops": 20.0, "seconds": 2.0},
    }  # fmt: skip
    assert grpo["best-rl"] == grpo["80"] == {"flops": 20.0, "seconds": 2.0}
    assert set(dpo.values()) == {None}
    assert made["rows"][0]["reached_consistency"] == {
        "80": {"flops": 30.0, "seconds": 3.0}, "85": None, "90": None, "92.3": None,
        "best-rl": {"flops": 20.0, "seconds": 2.0},
    }  # fmt: skip
