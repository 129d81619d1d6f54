"""Bundles: a run without its base's weights, which gives the same answers wherever it is opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isogloss
from isogloss.cli import main
from isogloss.config import Config, load_config
from isogloss.errors import RunError
from isogloss.model.load import load_model, load_tokenizer
from isogloss.pipeline import bundle, stages
from isogloss.pipeline.folder import load_run, open_run

SMALL = (
    "data.english_items=16",
    "tune.method=lora",
    "tune.lora_rank=2",
    "tune.learning_rate=0.01",
    "tune.batch_size=4",
    "tune.epochs=1",
    "languages.targets=[sw,ur]",
    "languages.items={high: 7, middle: 7, low: 7}",
    "distill.adapter.layers=3",
    "distill.batch_size=4",
    "distill.epochs=1",
    "distill.replay_fraction=0",
    "distill.max_prompt_length=1500",
    "evaluate.max_new_tokens=4",
    "dtype=float32",
)
ASKED = ["Habari?", "Ndiyo", "سلام", "Hello"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base: Path) -> Config:
    """A run tuned by LoRA and distilled, over a base with a licence and without a chat template."""
    folder = tmp_path_factory.mktemp("handed")
    shutil.copytree(base, folder / "base")
    (folder / "base" / "chat_template.jinja").unlink()
    (folder / "base" / "README.md").write_text("---\nlicense: tiny-terms\n---\nA model.\n")
    (folder / "base" / "NOTICE.md").write_text("Be kind.\n")
    config = load_config(None, (*SMALL, f"run={folder / 'run'}", f"model={folder / 'base'}"))
    run = open_run(config)
    stages.run_tune(run)
    stages.run_distill(run)
    return config


@pytest.fixture
def handed(finished: Config, tmp_path: Path) -> Path:
    """The run's bundle, moved to another folder."""
    bundle.write(load_run(finished.run), tmp_path / "bundle")
    return Path(shutil.move(tmp_path / "bundle", tmp_path / "elsewhere"))


def test_stage_1_by_lora_keeps_its_adapter(finished: Config):
    """The tuned weights are base + (alpha / r) · B A of the saved bfloat16 adapter."""
    tuned = finished.run / "tuned"
    state = load_file(tuned / "stage1_adapter" / "adapter_model.safetensors")
    assert {p.dtype for p in state.values()} == {torch.bfloat16}
    stem = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    added = 2.0 * state[stem + "B.weight"].float() @ state[stem + "A.weight"].float()
    name = "model.layers.1.mlp.up_proj.weight"
    before = load_model(finished.model, torch.float32).state_dict()[name]
    after = load_model(str(tuned), torch.float32).state_dict()[name]
    assert added.abs().max() > 1e-4
    torch.testing.assert_close(after, before + added, rtol=0, atol=1e-7)
    config = json.loads((tuned / "stage1_adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == finished.model


def test_derived_weights_carry_the_bases_licence(finished: Config):
    """The tuned model's card states it, and the notice is copied beside it."""
    tuned = finished.run / "tuned"
    card = (tuned / "README.md").read_text()
    assert card.startswith("---\nlicense: tiny-terms\n")
    assert f"{finished.model}; licence: tiny-terms. What travels with it: NOTICE.md." in card
    assert card.endswith("Be kind.\n") and (tuned / "NOTICE.md").read_text() == "Be kind.\n"
    assert load_tokenizer(str(tuned)).chat_template == load_tokenizer(finished.model).chat_template


@pytest.mark.parametrize("seed", sorted(Path("benchmarks/real").glob("*/bundle.json")), ids=str)
def test_the_settings_of_the_committed_bundles_are_still_read(seed: Path):
    """A setting that was removed must have had no effect there."""
    assert load_config(seed.parent).model == "gemma-3-270m"


def test_a_bundle_has_no_peft_adapters(handed: Path):
    with pytest.raises(RunError, match=r"has no PEFT adapters, as a bundle; use isogloss\.load or"):
        isogloss.load_peft(handed, "sw")


def test_a_bundle_gives_the_same_model_and_the_same_answers(finished: Config, handed: Path):
    """The rebuilt tuned weights are bit-identical to the run's; bundling again writes the same tree."""
    assert sorted(f.name for f in handed.iterdir()) == [
        ".gitignore",
        "NOTICE.md",
        "README.md",
        "adapters",
        "bundle.json",
        "chat_template.jinja",
        "config.yaml",
        "stage1_adapter",
        "tree.json",
    ]
    assert f"run: {finished.run.name}\n" in (handed / "config.yaml").read_text()
    here, there = isogloss.load(finished.run), isogloss.load(handed)
    ours, theirs = here.run.reference_model().state_dict(), there.run.reference_model().state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert there.generate(ASKED, max_new_tokens=6) == here.generate(ASKED, max_new_tokens=6)
    assert there.run.config.dtype == "float32" and there.run.tuned == handed / "tuned"
    assert (handed / "tuned" / "NOTICE.md").exists() and (handed / "tuned" / "stage1_adapter").is_dir()
    bundle.write(there.run, handed / "again")
    assert (handed / "again" / bundle.TREE).read_bytes() == (handed / bundle.TREE).read_bytes()


def test_trained_adapters_are_rounded_to_bfloat16(finished: Config):
    """This holds for the saved tree and for the adapters exported from it."""
    run = load_run(finished.run)
    kept = load_file(run.trained)
    assert kept and {rows.dtype for rows in kept.values()} == {torch.bfloat16}
    for file in (finished.run / "adapters").glob("*/adapter_model.safetensors"):
        for rows in load_file(file).values():
            assert torch.equal(rows, rows.bfloat16().float())


@pytest.mark.parametrize("file", ["stage1_adapter/adapter_model.safetensors", "tree.json", bundle.TREE])
def test_a_bundle_with_a_changed_or_missing_file_is_refused(handed: Path, file: str):
    """The error comes before the base is loaded, so no tuned model is rebuilt."""
    with (handed / file).open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(RunError) as caught:
        isogloss.load(handed)
    assert str(caught.value) == f"{handed / file} has changed since the bundle was written; get it again"
    (handed / file).unlink()
    with pytest.raises(RunError) as caught:
        isogloss.load(handed)
    assert str(caught.value) == f"{handed} lacks {file}; get the bundle again"
    assert not (handed / "tuned").exists()


@pytest.mark.parametrize("name", ["model", "base", "tuned", "files"])
def test_a_bundle_with_an_incomplete_manifest_is_refused(handed: Path, name: str):
    """A hash or the base's name is missing."""
    manifest = json.loads((handed / bundle.MANIFEST).read_text())
    del manifest[name]
    (handed / bundle.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError) as caught:
        isogloss.load(handed)
    assert str(caught.value) == f"{handed / 'bundle.json'} is damaged; get the bundle again"


def test_a_used_bundle_opens_again(finished: Config, handed: Path):
    """Its card may be edited at any time, and after the first use tree.json may change (as when a language is
    added) and tuned/ may be removed. The chat template may not change."""
    (handed / "README.md").write_text("edited")
    isogloss.load(handed)
    shutil.rmtree(handed / "tuned")
    with (handed / "tree.json").open("a") as opened:
        opened.write(" ")
    isogloss.load(handed)
    shutil.rmtree(handed / "tuned")
    with (handed / bundle.TEMPLATE).open("a") as opened:
        opened.write(" ")
    with pytest.raises(
        RunError, match=r"chat_template.jinja has changed since the bundle was written; get it again$"
    ):
        isogloss.load(handed)


def test_a_bundle_inside_its_run_is_not_rewritten(finished: Config, tmp_path: Path):
    """Loading a run updates the base's path in its exports, but a bundle is meant for other machines."""
    inside = finished.run / "exports" / "bundle"
    bundle.write(load_run(finished.run), inside)
    load_run(finished.run)
    handed = Path(shutil.copytree(inside, tmp_path / "bundle"))
    shutil.rmtree(inside)
    isogloss.load(handed)


def test_a_bundle_with_a_different_base_is_refused(finished: Config, handed: Path):
    """A change to one tensor of the base is enough."""
    weights = Path(finished.model) / "model.safetensors"
    before = weights.read_bytes()
    state = load_file(weights)
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    save_file(state, weights, {"format": "pt"})
    try:
        with pytest.raises(RunError) as caught:
            isogloss.load(handed)
    finally:
        weights.write_bytes(before)
    assert str(caught.value) == (
        f"{handed} was made with other weights of {finished.model} than the local ones"
    )
    assert not (handed / "tuned").exists()


def test_export_writes_a_bundle_that_ask_can_use(finished: Config, tmp_path: Path, capsys):
    """`export --format bundle`, then `ask` on the bundle; options that select languages are refused."""
    folder = tmp_path / "bundle"
    assert _exit("export", finished.run, "--format", "bundle", "--out", folder) == 0
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert capsys.readouterr().out.endswith(f"Bundle: {folder}, {size / 1e6:.1f} MB\n")
    assert _exit("ask", folder, "--language", "sw", "Habari?") == 0
    assert f"{folder}: rebuilding its reference model from {finished.model}, once" in (
        capsys.readouterr().out
    )
    assert _exit("export", finished.run, "--format", "bundle", "--all") == 2
    assert capsys.readouterr().err == (
        "error --format bundle: contains all languages as they are; leave out --language, --all, --max-rank\n"
    )


def test_a_run_without_a_stage_1_adapter_cannot_be_bundled(finished: Config, tmp_path: Path):
    """Full tuning leaves no adapter."""
    shutil.copytree(finished.run, tmp_path / "full")
    shutil.rmtree(tmp_path / "full" / "tuned" / "stage1_adapter")
    with pytest.raises(RunError) as caught:
        bundle.write(load_run(tmp_path / "full"), tmp_path / "bundle")
    assert str(caught.value) == (
        f"--format bundle: {tmp_path / 'full' / 'tuned'} has no stage1_adapter; a bundle needs a run with "
        "tune.method lora"
    )
    assert not (tmp_path / "bundle").exists()


def _exit(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0
