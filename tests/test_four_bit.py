"""A frozen model in 4 bits: the training of adapters on it, and errors without a GPU or bitsandbytes."""

import shutil
from importlib.util import find_spec

import pytest
import torch

from isogloss.config import load_config
from isogloss.errors import ConfigError
from isogloss.model import load
from isogloss.model.cost import Meter
from isogloss.pipeline import checks, stages
from isogloss.pipeline.folder import ProgressReporter, Run, open_run

SMALL = (
    "data.english_items=24",
    "languages.targets=[sw,ur]",
    "languages.items={high: 6, middle: 6, low: 6}",
    "distill.adapter.ranks={root: 2, family: 1, language: 2}",
    "distill.epochs=1",
    "distill.batch_size=6",
    "distill.kl_weight=0.5",
    "distill.learning_rate=1e-3",
    "distill.max_prompt_length=5000",
    "dtype=float32",
    "four_bit=true",
)
there = find_spec("bitsandbytes") is not None and torch.cuda.is_available()
needs = pytest.mark.skipif(not there, reason="needs a GPU and bitsandbytes")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run over the embedded base, as 4-bit matrix products on a CPU need whole blocks of rows."""
    folder = tmp_path_factory.mktemp("four")
    made = open_run(load_config(None, (*SMALL, f"run={folder / 'run'}", "model=demo")))
    shutil.copytree(load.model_folder("demo"), made.tuned)
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
@pytest.mark.parametrize(
    ("setting", "says"), [("four_bit", "needs a GPU"), ("shard", "needs several processes")]
)
def test_a_machine_without_a_gpu_or_several_processes_is_refused_before_stage_1(tmp_path, setting, says):
    """Stage 1 uses the original weights, so it would work and be wasted."""
    settings = [one for one in SMALL if "four_bit" not in one]
    given = (*settings, f"{setting}=true", "tune.method=lora", f"run={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match=f"^{setting}: {says}"):
        checks.check(Run(load_config(None, given), ProgressReporter()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_four_bit_without_a_gpu_is_refused(run):
    """bitsandbytes runs on a CPU, but without gradients."""
    with pytest.raises(ConfigError, match=r"^four_bit: needs a GPU; leave it out$"):
        run.reference_model()


def test_four_bit_without_bitsandbytes_is_refused(run, monkeypatch):
    """The error names the extra to install."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(load, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"^four_bit: needs bitsandbytes; pip install 'isogloss\[four-bit\]'$"
    ):
        run.reference_model()


@needs
def test_adapters_train_on_a_four_bit_model_that_stays_unchanged(run):
    """All self-checks pass: without adapters the logits are bit-identical, and on a path they change."""
    stages.run_distill(run)
    reference = run.reference_model()
    kinds = {type(m).__name__ for m in reference.modules()}
    assert "Linear4bit" in kinds and reference.get_output_embeddings().weight.dtype == torch.float32
    ids = torch.arange(20, 40, device=reference.device).view(2, 10)
    with torch.no_grad():
        plain = reference(input_ids=ids).logits
        adapters = run.student(run.reference_model(), trained=True)
        assert torch.equal(adapters.model(input_ids=ids).logits, plain)
        with adapters.on(["sw", "ur"]) as aligned:
            assert not torch.equal(aligned(input_ids=ids).logits, plain)


@needs
def test_each_four_bit_weight_is_counted(run):
    """Two weights share a byte, but a matrix product uses both."""
    assert Meter(run.reference_model()).body == Meter(load.load_model("demo", torch.float32)).body
