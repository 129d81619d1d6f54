"""A frozen model in 4 bits a weight: what is trained beside it, and what its absence says."""

import shutil
from importlib.util import find_spec

import pytest
import torch

from isogloss import model, pipeline
from isogloss.config import load_config
from isogloss.cost import Meter
from isogloss.errors import ConfigError

SMALL = (
    "data.english_items=24", "languages.targets=[sw,ur]", "languages.items={high: 6, middle: 6, low: 6}",
    "distill.carrier.ranks={root: 2, family: 1, language: 2}", "distill.epochs=1", "distill.batch=6",
    "distill.kl=0.5", "distill.lr=1e-3", "distill.max_prompt=5000", "dtype=float32", "four_bit=true",
)  # fmt: skip
needs = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> pipeline.Run:
    folder = tmp_path_factory.mktemp("four")
    made = pipeline.open_run(load_config(None, (*SMALL, f"run={folder / 'run'}", f"model={base}")))
    shutil.copytree(base, made.tuned)
    return made


def test_without_the_library_it_is_refused(run, monkeypatch):
    monkeypatch.setattr(model, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"^four_bit: needs bitsandbytes; pip install 'isogloss\[four-bit\]'$"
    ):
        run.reference_model()


@needs
def test_carriers_learn_beside_it_and_it_stays(run):
    """All self-checks pass: off it is itself to the bit; on, a path moves the logits."""
    pipeline.run_distill(run)
    reference = run.reference_model()
    kinds = {type(m).__name__ for m in reference.modules()}
    assert "Linear4bit" in kinds and reference.get_output_embeddings().weight.dtype == torch.float32
    ids = torch.arange(20, 40).view(2, 10)
    with torch.no_grad():
        plain = reference(input_ids=ids).logits
        carrier = run.student(run.reference_model(), trained=True)
        assert torch.equal(carrier.model(input_ids=ids).logits, plain)
        with carrier.on(["sw", "ur"]) as aligned:
            assert not torch.equal(aligned(input_ids=ids).logits, plain)


@needs
def test_its_weights_are_counted_whole(run, tiny):
    """Two of them lie in a byte; a product needs both."""
    assert Meter(run.reference_model()).body == Meter(tiny()).body
