"""Training with decoder layers compiled by torch, in a process that does not check tensor types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """Both stages, compiled and uncompiled; the backend traces and differentiates, but generates no C++."""
    folder = tmp_path_factory.mktemp("compiled")
    several.prepare(folder, tiny())
    jobs = [
        {"name": f"{backend or 'plain'}-{stage}", "stage": stage, "backend": backend, "hidden": stage - 1}
        for stage in (1, 2)
        for backend in ("", "aot_eager")
    ]
    command = [sys.executable, several.__file__, str(folder), json.dumps(jobs)]
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0 and "UserWarning" not in done.stderr, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_compiled_layers_give_the_same_gradients(trained, stage):
    """They take five steps of five shapes; stage 2 also uses adapter paths and captures a layer."""
    plain, ours = (
        torch.load(trained / f"{name}-{stage}" / "found.pt", weights_only=True)["gradients"]
        for name in ("plain", "aot_eager")
    )
    assert len(ours) == several.STEPS
    for expected, found in zip(plain, ours, strict=True):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_layers_share_compiled_graphs(trained, stage):
    """Three layers and five shapes need at most one graph for the first shape and one for all others, counted
    separately for captured and other layers. Nothing falls back to Python; no layer stays compiled."""
    found = json.loads((trained / f"aot_eager-{stage}" / "compiled.json").read_text())
    assert 1 <= found.pop("graphs") <= 2 * stage
    assert found == {"breaks": [], "plain": True}


def test_compiled_layers_have_the_same_counted_costs(trained):
    """The hooks that count them still work."""
    plain, ours = (
        json.loads((trained / f"{n}-2" / "counts.json").read_text()) for n in ("plain", "aot_eager")
    )
    assert ours == plain and ours["flops"] > 0
