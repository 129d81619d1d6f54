"""All methods on the same work, through the command line and with TRL's own trainers."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl", reason="the baselines need the extra isogloss[rl]")

from experiments import compare_methods, comparison, contest, methods, plot
from experiments.contest import Entry, Point
from experiments.tables import show_methods
from isogloss.cli import main
from isogloss.config import load_config
from isogloss.data.examples import Turn
from isogloss.errors import ConfigError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.pipeline.folder import ProgressReporter

METHODS = (
    "isogloss",
    "reference",
    "flat",
    "shared",
    "sft",
    "sft-languages",
    "sequence",
    "dco",
    "dpo",
    "grpo",
    "sft-grpo",
)


def leave(command: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(command, compare_methods.app)
    return exit_.value.code


@pytest.mark.filterwarnings("ignore")  # trl's and transformers' own
def test_every_method_is_trained_and_evaluated_and_a_stopped_comparison_resumes(base, tmp_path, capsys):
    """Every method, ours included, has points of growing cost; a second call trains nothing again."""
    folder = tmp_path / "out"
    settings = (
        f"model={base}",
        f"run={tmp_path / 'unused'}",
        "dtype=float32",
        "data.english_items=16",
        "tune.epochs=1",
        "tune.batch_size=8",
        "languages.targets=[es,sw]",
        "languages.items={high: 8, middle: 8, low: 8}",
        "distill.epochs=2",
        "distill.batch_size=8",
        "distill.max_prompt_length=2000",
        "distill.adapter.target_modules=[q_proj,down_proj]",
        "evaluate.split=dev",
        "evaluate.items=7",
        "evaluate.sentences=6",
        "evaluate.max_new_tokens=4",
    )
    command = ["--points", "2", "--times", "1000", "--out", str(folder)]
    command += [part for one in settings for part in ("--set", one)]
    assert leave([*command, "--method", "sft"]) == 0  # ours comes first, requested or not
    assert [r["method"] for r in json.loads((folder / "methods.json").read_text())["rows"]] == [
        "isogloss",
        "sft",
    ]
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
        levels = {"80", "85", "90", "92.3", "best-rl", "own-best"}
        assert levels == set(row["reached"]) == set(row["reached_consistency"])
        assert 0 <= row["alignment"] <= 1 and -1 <= row["retention"] <= 1
    # Eight answers are sampled for each prompt before a step on them.
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
    assert leave(["--method", "ppo", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        "--method ppo: unknown; choose from isogloss, reference, flat, shared, sft, sft-languages, sequence"
        in said
    )
    assert leave(["--method", "grpo: lr=3e-4", "--out", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "--method grpo: lr=3e-4: write it as 'grpo: setting=value'; known settings: learning_rate, beta"
        in said
    )
    assert leave(["--method", "flat: beta=1", "--out", str(tmp_path / "out")]) == 2
    assert "it has no settings here" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_method_with_other_settings_is_an_entry_of_its_own(monkeypatch):
    """The value is read as YAML, and what is not given stays; RL with other settings is RL."""
    got = {}

    def grpo(contest, settings):
        got.update(settings)
        return entry("grpo", 0, 0.8)

    monkeypatch.setitem(methods.METHODS, "grpo", grpo)
    contest = SimpleNamespace(run=SimpleNamespace(config=load_config()))
    trained = methods.train(contest, "grpo: learning_rate=3.0e-4 num_generations=4")
    assert got == {**methods.GRPO, "learning_rate": 3e-4, "num_generations": 4}
    assert trained.method == "grpo: learning_rate=3.0e-4 num_generations=4"
    made = table(entry("isogloss", 0, 0.9), trained)
    assert made["saving"]["seeds"][0]["method"] == trained.method


def test_items_and_sentences_may_come_from_two_suites(monkeypatch):
    """As on a real model: items of MASSIVE, sentences of FLORES-101."""
    turns = {"en": Turn("Wake me", "alarm"), "es": Turn("Despiértame", "alarm")}
    item = Item("1", "intent", turns)
    suites = {
        "massive": SuiteData("massive", "1", "dev", (item,), {}),
        "flores101": SuiteData("flores101", "1", "dev", (), {"en": ("a",)}, {"en": ("b",)}),
    }
    monkeypatch.setattr(contest, "load_suite", lambda name, *given: suites[name])

    def asked(*names):
        evaluate = SimpleNamespace(suites=names)
        return SimpleNamespace(config=SimpleNamespace(evaluate=evaluate), data_root=None, taught=("es",))

    suite = contest.held_out(asked("flores101", "massive"))
    assert (suite.name, suite.items, suite.sentences) == ("massive", (item,), {"en": ("a",)})
    assert suite.layer_sentences == {"en": ("b",)}
    with pytest.raises(ConfigError, match="no suite has parallel sentences, such as flores101"):
        contest.held_out(asked("massive"))
    with pytest.raises(ConfigError, match="no suite has items, such as massive"):
        contest.held_out(asked("flores101"))


def test_invalid_settings_are_refused_before_stage_1(base, tmp_path, capsys):
    """A layer that the model lacks would otherwise end the comparison after the first training."""
    command = ["--out", str(tmp_path / "out"), "--set", f"model={base}"]
    assert (
        leave([*command, "--set", "distill.similarity_layer=99", "--set", "distill.max_prompt_length=2000"])
        == 2
    )
    assert f"distill.similarity_layer: {base} has 3 decoder layers, not 99" in " ".join(
        capsys.readouterr().err.split()
    )
    assert list(tmp_path.iterdir()) == []


def entry(method: str, seed: int, *found: float, cost: float = 10.0) -> Entry:
    """Return a method with time n and cost n · `cost` at its n-th point; consistency is 0.1 below the
    alignment."""
    points = [
        Point(n, cost * n, float(n), {"alignment": a, "consistency": a - 0.1})
        for n, a in enumerate(found, start=1)
    ]
    return Entry(method, seed, points, flops=cost * len(found), seconds=float(len(found)))


def table(*entries: Entry) -> dict[str, Any]:
    return comparison.table(load_config(), entries, {"points": 3})


def test_levels_are_reached_at_the_first_point_that_has_them():
    """`best-rl` is the best alignment of any RL method at any point, per seed."""
    made = table(
        entry("isogloss", 0, 0.7, 0.84, 0.91),
        entry("grpo", 0, 0.5, 0.83, 0.81, cost=40),
        entry("dpo", 0, 0.6),
    )
    ours, grpo, dpo = (row["reached"] for row in made["rows"])
    assert ours == {
        "80": {"flops": 20.0, "seconds": 2.0},
        "85": {"flops": 30.0, "seconds": 3.0},
        "90": {"flops": 30.0, "seconds": 3.0},
        "92.3": None,
        "best-rl": {"flops": 20.0, "seconds": 2.0},
        "own-best": {"flops": 30.0, "seconds": 3.0},
    }
    assert grpo["best-rl"] == grpo["own-best"] == grpo["80"] == {"flops": 80.0, "seconds": 2.0}
    assert [level for level, cost in dpo.items() if cost] == ["own-best"]
    assert made["rows"][0]["reached_consistency"] == {
        "80": {"flops": 30.0, "seconds": 3.0},
        "85": None,
        "90": None,
        "92.3": None,
        "best-rl": {"flops": 20.0, "seconds": 2.0},
        "own-best": {"flops": 30.0, "seconds": 3.0},
    }


def test_levels_that_are_never_reached_have_a_lower_bound():
    """GRPO spent 120 in 3 s; ours reached 85 % for 30 in 3 s. Ours is also compared at GRPO's own best."""
    made = table(entry("isogloss", 0, 0.7, 0.84, 0.91), entry("grpo", 0, 0.5, 0.83, 0.81, cost=40))
    ours, grpo = made["rows"]
    assert (ours["not_within"], grpo["not_within"]) == (
        {"92.3": None},
        {"85": {"flops": 4.0, "seconds": 1.0}, "90": {"flops": 4.0, "seconds": 1.0}, "92.3": None},
    )
    assert grpo["levels"]["own-best"] == 0.83 and grpo["ours"]["own-best"] == {"flops": 20.0, "seconds": 2.0}


SEEDS = (
    entry("isogloss", 0, 0.86, 0.93),
    entry("grpo", 0, 0.5, 0.6, 0.7, 0.86, cost=50),
    entry("isogloss", 1, 0.7, 0.86, 0.93),
    entry("grpo", 1, 0.85, cost=100),
    entry("isogloss", 2, 0.7, 0.7, 0.86),
    entry("grpo", 2, 0.7, cost=15),
)
"""GRPO reaches 86, 85 and 70 % for 200, 100 and 15; ours gets as far for 10, 20 and 10."""


def test_seeds_are_summarised():
    """A t interval over three seeds; over the two that reach a level, the mean cost and their number."""
    made = table(*SEEDS)
    ours, grpo = made["summary"]
    assert (ours["method"], ours["seeds"], grpo["method"]) == ("isogloss", 3, "grpo")
    # t with two degrees of freedom is 4.3027; the standard deviation of 86, 85 and 70 % is 8.963.
    assert grpo["levels"]["own-best"] == {
        "mean": pytest.approx(0.80333, abs=1e-5),
        "low": pytest.approx(0.58069, abs=1e-4),
        "high": pytest.approx(1.02598, abs=1e-4),
        "n": 3,
        "interval": "t",
    }
    assert grpo["reached"]["80"]["flops"] == {
        "mean": 150.0,
        "low": 100.0,
        "high": 200.0,
        "n": 2,
        "interval": "min-max",
    }
    assert grpo["times"]["80"]["flops"]["mean"] == (200 / 10 + 100 / 20) / 2
    assert (grpo["reached"]["90"], grpo["times"]["90"]) == (None, None)
    # Ours took 20 in the first seed and 30 in the second; the third did not get as far.
    assert grpo["not_within"]["90"] == {"flops": 100 / 30, "seconds": 1 / 3}
    assert "80" not in grpo["not_within"]


def test_savings_are_relative_to_the_best_rl_method():
    """1 − 10/200, 1 − 20/100 and 1 − 10/15 of the FLOPs."""
    saved = table(*SEEDS)["saving"]
    assert [one["flops"] for one in saved["seeds"]] == pytest.approx([0.95, 0.8, 1 / 3])
    assert [(one["seed"], one["method"], one["alignment"]) for one in saved["seeds"]] == [
        (0, "grpo", 0.86),
        (1, "grpo", 0.85),
        (2, "grpo", 0.7),
    ]
    assert saved["flops"]["mean"] == pytest.approx((0.95 + 0.8 + 1 / 3) / 3)
    assert table(entry("isogloss", 0, 0.9), entry("sft", 0, 0.9))["saving"] == {
        "seeds": [],
        "flops": None,
        "seconds": None,
    }
    behind = table(entry("isogloss", 0, 0.7), entry("grpo", 0, 0.8))["saving"]
    assert (behind["seeds"][0]["flops"], behind["flops"]) == (None, None)


def test_the_table_shows_bounds_and_intervals(capsys):
    """The factor over our cost follows the cost; > marks a level that was never reached."""
    show_methods(table(*SEEDS)["rows"])
    said = capsys.readouterr().out
    seconds = said[said.index("Seconds to reach") : said.index("TFLOP to reach")].split("\n")
    assert seconds[1].split() == ["method", "80", "85", "90", "92.3", "best-rl", "own-best"]
    cells = next(line.split() for line in seconds if line.startswith("grpo"))
    assert cells == ["grpo", *["2,", "2.2×"] * 2, *[">", "0.3×"] * 2, *["2,", "1.8×"] * 2]
    reached = [line.split() for line in seconds if "2 of 3" in line]
    assert reached == [["2", "of", "3"] * 2, ["2", "of", "3"] * 2]  # ours to 90 and 92.3 %, GRPO to 80 and 85
    assert "To reach the best RL method's level: 69.4 ±79.9 % fewer operations" in said
    show_methods(table(*SEEDS[:2])["rows"])
    assert "±" not in capsys.readouterr().out


def test_results_of_an_earlier_format_are_upgraded(tmp_path):
    """They lack levels, bounds and summary: nothing is trained again, and the result equals a new one."""
    about = {
        "points": 10,
        "times": 3.0,
        **{name: methods.FOR_DEMO[name] for name in ("sft", "dco", "dpo", "grpo", "sft-grpo")},
        "samples": comparison.SAMPLES,
    }
    made = comparison.table(load_config(), SEEDS, about)
    old = json.loads(json.dumps(made))
    del old["summary"], old["saving"]
    for row in old["rows"]:
        del row["ours"], row["not_within"], row["tokens_generated"]
        for name in ("levels", "reached", "reached_consistency"):
            del row[name]["own-best"]
    file = tmp_path / "methods.json"
    file.write_text(json.dumps(old))
    asked = load_config(), ("isogloss", "grpo"), range(3), tmp_path, ProgressReporter()
    assert comparison.compare_methods(*asked) == json.loads(file.read_text()) == made
    assert {path.name for path in tmp_path.iterdir()} == {"methods.json", "methods.svg"}


def test_seeds_are_plotted_behind_their_mean(tmp_path, monkeypatch):
    """Two pale lines and one of the means over the points that both have; a method is labelled once."""
    figures: list[Any] = []
    monkeypatch.setattr(plot.pyplot, "close", figures.append)
    plot.draw(table(*SEEDS[:4])["rows"], tmp_path / "methods.svg")
    lines = figures[0].axes[1].lines  # seconds
    assert [[list(axis) for axis in line.get_data()] for line in lines] == [
        [[1, 2], [86, 93]],
        [[1, 2, 3], [70, 86, 93]],
        [[1, 2], [78, 89.5]],
        [[1, 2, 3, 4], [50, 60, 70, 86]],
        [[1], [85]],
        [[1], [67.5]],
    ]
    assert (tmp_path / "methods.svg").read_text().count(">grpo</text>") == 1
