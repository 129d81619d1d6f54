"""Variants of stage 2: their training settings, which ones are refused, and how they are compared."""

import json
import os
from pathlib import Path

import pytest
from transformers import Qwen3Config

from experiments import ablation
from experiments.ablation import VARIANTS, Variant, corrected, parse, resolved, with_items, with_seeds
from experiments.settings import settings_for_choosing
from experiments.tables import show_ablation
from isogloss.config import load_config, with_overrides
from isogloss.errors import ConfigError, RunError
from isogloss.pipeline.folder import ProgressReporter, Run


def variants(*names: str, items=()) -> list[Variant]:
    return with_items([parse(name) for name in names], items)


def test_variants_of_the_teachers_prompt_add_a_divergence_if_the_settings_have_none():
    """`with-kl` is trained once, as the baseline of the variants of what the teacher reads."""
    found = resolved(load_config(), variants("families", "no-texts", "no-english"))
    assert [(one.name, one.overrides, one.against) for one in found] == [
        ("families", ("languages.tree=families",), None),
        ("with-kl", ("distill.kl_weight=1",), None),
        ("no-texts", ("distill.kl_weight=1", "distill.teacher_reads=[twin,answer]"), "with-kl"),
        (
            "no-english",
            ("distill.kl_weight=1", "distill.teacher_reads=[texts]", 'distill.teacher_view="prompt"'),
            "with-kl",
        ),
    ]
    asked = variants("families", "no-texts", "with-kl")
    assert [one.name for one in resolved(load_config(), asked)] == ["families", "no-texts", "with-kl"]


def test_each_number_of_items_has_its_own_with_kl_baseline():
    """Both sides of a comparison have the same number of items."""
    found = resolved(load_config(), variants("families", "no-texts", items=(8, 16)))
    assert [(one.name, one.against) for one in found] == [
        ("families@8", None), ("with-kl@8", None), ("no-texts@8", "with-kl@8"),
        ("families@16", None), ("with-kl@16", None), ("no-texts@16", "with-kl@16"),
    ]  # fmt: skip


def test_bare_sentences_are_dropped_without_a_hidden_state_term():
    """No other loss uses them; pairs that are also translated are kept for that."""
    text = "parallel_text=[{type: tatoeba}, {type: tico19, use: [alignment]}]"
    config = load_config(None, [text, "distill.kl_weight=1"])
    for one in resolved(config, variants("sft", "no-hidden")):
        found = with_overrides(config, one.overrides)
        assert [(source.type, source.use) for source in found.parallel_text] == [
            ("tatoeba", ("translation",))
        ]
    (whole,) = resolved(config, variants("families"))
    assert with_overrides(config, whole.overrides).parallel_text == config.parallel_text


def test_a_variant_resets_settings_that_would_have_no_effect():
    """Settings that only concern the removed term would otherwise be refused."""
    config = load_config(
        None, ["distill.kl_weight=1", "distill.divergence=reverse", "distill.similarity_temperature=0.1"]
    )
    for name, setting, usual in (
        ("no-kl", "divergence", "forward"),
        ("no-hidden", "similarity_temperature", None),
    ):
        changed = with_overrides(config, parse(name).overrides)
        weight = {"no-kl": "kl_weight", "no-hidden": "similarity_weight"}[name]
        assert getattr(changed.distill, weight) == 0
        assert getattr(changed.distill, setting) == usual


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_applies_to_a_model_of_earlier_settings(name):
    """Its teacher reads English only and its layer is set; what a variant cannot have is reset."""
    settings = [
        "distill.kl_weight=1",
        "distill.teacher_view=english",
        "distill.teacher_reads=[twin]",
        "distill.similarity_layer=2",
    ]
    changed = with_overrides(load_config(None, settings), parse(name).overrides).distill
    without = ("no-kl", "no-english", "sft")
    assert changed.teacher_view == ("prompt" if name in without else "english")


@pytest.mark.parametrize(
    ("name", "off"), [("no-kl", "replay_fraction"), ("sft", "replay_fraction"), ("no-replay", "kl_weight")]
)
def test_without_kl_and_replay_a_variant_has_the_usual_signal(name, off):
    """No teacher output is used then, so another signal would be refused."""
    settings = ["distill.kl_weight=1", "distill.signal=top_k", "distill.top_k=16", f"distill.{off}=0"]
    config = load_config(None, settings)
    (variant,) = resolved(config, variants(name))
    assert with_overrides(config, variant.overrides).distill.form == ("hidden", 32)


def test_with_kl_a_pretrained_model_gets_its_own_divergence(tmp_path):
    """Not the one of the demo, which settings without a divergence contain."""
    Qwen3Config(num_hidden_layers=5, hidden_size=32, intermediate_size=48).save_pretrained(tmp_path)
    config = load_config(None, [f"model={tmp_path}", "distill.kl_weight=0"])
    (variant,) = resolved(config, variants("with-kl"))
    found = with_overrides(config, variant.overrides).distill
    assert (found.teacher_view, found.teacher_reads, found.temperature) == ("english", ("twin",), 4)


@pytest.mark.parametrize(
    "setting",
    ["distill.kl_weight=0.5", "distill.teacher={type: model, path: elsewhere, level: sequence}"],
)
def test_no_divergence_is_added_if_the_teacher_is_used_anyway(setting):
    """Either by a divergence with its own weight, or by responses that it writes."""
    asked = variants("families", "no-texts")
    assert resolved(load_config(None, [setting]), asked) == asked


@pytest.mark.parametrize(
    ("settings", "names", "items", "says"),
    [
        (
            [], ["no-kl"], (),
            "no-kl: the settings already have distill.kl_weight=0; use with-kl, or leave it out",
        ),
        (
            ["distill.kl_weight=1"], ["flat", "with-kl"], (8,),
            "with-kl@8: the settings already have distill.kl_weight=1; use no-kl, or leave it out",
        ),
        (
            ["distill.similarity_weight=0"], ["no-hidden"], (),
            "no-hidden: the settings already have distill.similarity_weight=0; use another "
            "distill.similarity_weight by --set, or leave it out",
        ),
        (
            [], ["families", "mine: distill.similarity_weight=4"], (),
            "mine: same settings as families; leave one out",
        ),
        (
            ["distill.kl_weight=1"], ["no-english", "mine: distill.teacher_reads=[texts]"], (),
            "mine: same settings as no-english; leave one out",
        ),
        (
            [], ["mine: distill.epochs=1", "mine: distill.epochs=2"], (),
            "mine: two variants have this name; rename one",
        ),
    ],
)  # fmt: skip
def test_a_variant_that_changes_nothing_is_refused(settings, names, items, says):
    """Training it could only show no difference; only a tree may equal that of the settings."""
    with pytest.raises(ConfigError) as caught:
        resolved(load_config(None, settings), variants(*names, items=items))
    assert str(caught.value) == f"--variant {says}"


def test_a_refusal_leaves_nothing_behind(tmp_path):
    """No file is written and no reference model is tuned."""
    with pytest.raises(ConfigError, match=r"^--variant no-kl: "):
        ablation.ablate(
            load_config(), variants("families", "no-kl"), [0], tmp_path / "out", ProgressReporter()
        )
    assert list(tmp_path.iterdir()) == []


def killed(reporter: ProgressReporter) -> None:
    """Simulate a process that the kernel kills."""
    os._exit(9)


def test_a_killed_process_is_reported():
    """The other processes stop, and the message says what helps."""
    with pytest.raises(RunError) as caught, ablation._calling(2, ProgressReporter()) as each:
        list(each(killed, [(), ()]))
    assert str(caught.value) == (
        "a run's process was killed, possibly for lack of memory; --jobs 1 needs less and resumes from here"
    )


def difference(variant: str, p: float, suite: str = "demo", languages: str = "all") -> dict:
    about = {"suite": suite, "variant": variant, "against": "families", "languages": languages}
    return {**about, "measure": "alignment", "value": 0.1, "p": p}


def test_p_is_corrected_for_the_comparisons_of_a_suite():
    """Of three, 0.01, 0.02 and 0.4 become 0.03, 0.04 and 0.4; another suite's p is unchanged."""
    given = [
        difference("a", 0.02),
        difference("b", 0.01),
        difference("c", 0.4),
        difference("a", 0.03, "xnli"),
    ]
    found = corrected([{**one, "p_seeds": None} for one in given])
    assert [one["p"] for one in found] == pytest.approx([0.04, 0.03, 0.4, 0.03])
    assert [one["comparisons"] for one in found] == [3, 3, 3, 1]
    assert [one["p"] for one in given] == [0.02, 0.01, 0.4, 0.03]


def test_p_over_seeds_is_that_of_a_paired_t_test():
    """Differences of 1, 2 and 3 points: t = 2 · √3 with 2 degrees of freedom; two seeds give no p."""

    def row(variant: str, seed: int, value: float) -> dict:
        languages = {"es": value, "sw": value}
        return {"suite": "demo", "variant": variant, "seed": seed, "languages": languages, "low": value}

    rows = [row("families", seed, 0.5) for seed in (0, 1, 2)]
    rows += [row("flat", seed, 0.5 + (seed + 1) / 100) for seed in (0, 1, 2)]
    for languages in ("all", "low"):
        (found,) = with_seeds([difference("flat", 0.5, languages=languages)], rows)
        assert found["p_seeds"] == pytest.approx(0.0741799, abs=1e-6)
    (few,) = with_seeds([difference("flat", 0.5)], [one for one in rows if one["seed"] < 2])
    assert few["p_seeds"] is None


def test_seeds_without_a_spread_need_no_t_test():
    """The same difference in every seed gives no p, and no difference at all gives 1."""
    for value, p in ((0.75, None), (0.5, 1.0)):
        rows = [
            {"suite": "demo", "variant": variant, "seed": seed, "languages": {"sw": each}, "low": each}
            for variant, each in (("families", 0.5), ("flat", value))
            for seed in range(3)
        ]
        assert with_seeds([difference("flat", 0.5)], rows)[0]["p_seeds"] == p


MASSIVE = {
    "families": {"es": [1, 1, 0, 1], "sw": [1, 0, 0, 0], "ur": [1, 1, 0, 0]},
    "flat": {"es": [1, 1, 0, 1], "sw": [0, 0, 0, 0], "ur": [1, 0, 0, 0]},
}
"""Consistency of each item, by variant and language."""


@pytest.fixture
def measured(monkeypatch):
    """Replace the stages by ones that write what MASSIVE's evaluation does: no retrieval, so no alignment."""

    def begin(config, reporter):
        config.run.mkdir(parents=True, exist_ok=True)
        return Run(config, reporter)

    def tune(run):
        run.tuned.mkdir(exist_ok=True)
        (run.folder / "selection.jsonl").touch()

    def evaluate(run, kept):
        assert kept == run.folder.parent / f"seed-{run.config.seed}" / "before"
        hits = MASSIVE[run.config.languages.tree]
        each = {code: {"value": sum(items) / 4} for code, items in hits.items()}
        suite = {"after": {"consistency": {"mean": 0.5, "languages": each}}, "signature": "suite:massive"}
        (run.folder / "scores.json").write_text(json.dumps({"suites": {"massive": suite}}))
        ledger = {"stage": "distill", "tokens_backpropagated": 9, "flops": 1.0, "seconds": 2.0}
        (run.folder / "ledger.json").write_text(json.dumps({"stages": [ledger]}))
        predictions = run.folder / "predictions"
        predictions.mkdir(exist_ok=True)
        written = json.dumps({"items": ["a", "b", "c", "d"], "hits": {"consistency": hits}, "ids": {}})
        (predictions / "massive.after.hits.json").write_text(written)

    stages = {"open_run": begin, "run_tune": tune, "run_evaluate": evaluate}
    for name, stage in (stages | {"run_distill": None, "write_report": None}).items():
        monkeypatch.setattr(ablation, name, stage or (lambda run: None))


def test_a_suite_without_alignment_is_compared_by_its_consistency(measured, tmp_path, capsys):
    """Flat loses ¼ in Swahili and in Urdu: a sixth over all three languages, a quarter over the low ones."""
    config = load_config(None, ["languages.targets=[es,sw,ur]", "languages.amounts={ur: 48}"])
    done = ablation.ablate(config, variants("families", "flat"), [0], tmp_path / "out", ProgressReporter())
    rows = {row["variant"]: (row["measure"], row["languages"], row["low"]) for row in done.rows}
    assert rows == {
        "families": ("consistency", {"es": 0.75, "sw": 0.25, "ur": 0.5}, 0.375),
        "flat": ("consistency", {"es": 0.75, "sw": 0.0, "ur": 0.25}, 0.125),
    }
    found = [(one["languages"], one["measure"], one["value"], one["n"]) for one in done.differences]
    assert [(one["comparisons"], one["p_seeds"]) for one in done.differences] == [(2, None), (2, None)]
    assert found == [("all", "consistency", pytest.approx(-1 / 6), 4), ("low", "consistency", -0.25, 4)]
    show_ablation(ablation.summary(done.rows), done.differences)
    heads = [
        line.split()[:3] for line in capsys.readouterr().out.split("\n") if "low" in line or "95" in line
    ]
    assert heads[0] == ["variant", "consistency", "low"] and heads[1][0] == "consistency"


@pytest.mark.parametrize("name", ["families", "sft", "no-kl", "no-hidden", "shared", "flat", "random"])
def test_every_variant_of_the_real_model_fits_its_example(name, tmp_path):
    """Otherwise `benchmarks/real.py` would only fail when it reaches the variant."""
    example = Path(__file__).parents[2] / "examples" / "real.yaml"
    config = load_config(example, [f"data_root={tmp_path}"], places=True)
    made = with_overrides(config, ablation.VARIANTS[name])
    distill = made.distill
    assert (distill.kl_weight, distill.similarity_weight, made.languages.tree) == {
        "families": (1, 1, "families"),
        "sft": (0, 0, "shared"),
        "no-kl": (0, 1, "families"),
        "no-hidden": (1, 0, "families"),
    }.get(name, (1, 1, name))


def test_settings_for_choosing_evaluate_on_dev(capsys):
    """A split that is set explicitly is kept, with a warning if it is test."""
    of = settings_for_choosing
    assert of(None, None, None).evaluate.split == "dev"
    assert of(None, ["evaluate.items=5"], None).evaluate.items == 5
    assert of(None, ["evaluate.items=5"], None).evaluate.split == "dev"
    assert capsys.readouterr().out == ""
    assert of(None, ["evaluate.split=test"], None).evaluate.split == "test"
    assert "evaluate.split is test, not meant for choosing" in capsys.readouterr().out
