"""Training of the adapters: external teacher scores, ledger updates and the files written at the end."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from isogloss import processes
from isogloss.adapters.lora import TreeLora
from isogloss.errors import RunError
from isogloss.files import naming, read_json, replacing, write_json
from isogloss.languages import SOURCE
from isogloss.model.cost import StageCost
from isogloss.model.fingerprint import fingerprint
from isogloss.model.load import pad_id
from isogloss.pipeline.folder import Run
from isogloss.pipeline.tracking import tracking
from isogloss.progress import Bar, Progress
from isogloss.teacher import joining
from isogloss.teacher.cache import Cache, teacher_of
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import TokenScores
from isogloss.teacher.texts import node_texts
from isogloss.train.stage2 import distill


def train_adapters(
    run: Run, adapters: TreeLora, rows: Sequence[Row], codes: Sequence[str], stage: StageCost
) -> None:
    """Distil the rows into the adapters and write these to the run, as a tree and per language."""
    work, bar = run.folder / f"{stage.stage}.work", pausing_bar(run, stage)
    with run.reporter.waiting("Hashing the model's weights"):
        before = fingerprint(adapters.model)
    with tracking(run.folder, run.config.report_to):
        distill(
            adapters,
            rows,
            run.config.distill,
            pad_id=pad_id(run.tokenizer),
            seed=run.config.seed,
            work=work,
            curve=run.curve,
            cost=stage,
            bar=bar,
            say=run.reporter.say,
            cache=Cache(run.signals, teacher_of(adapters.model, run.tokenizer, before)),
            scored=scored_elsewhere(run, rows, stage, bar),
            compile=run.config.compile,
            report_to=run.config.report_to,
            reference=before,
        )
    if fingerprint(adapters.model) != before:
        raise RuntimeError("stage 2 changed the reference model's weights")
    if processes.is_main():
        _keep(run, adapters, rows, codes)
        run.ledger.pause(stage)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()


def _keep(run: Run, adapters: TreeLora, rows: Sequence[Row], codes: Sequence[str]) -> None:
    """Write the adapter of each language, the tree, and last the file that marks the stage as finished.

    The float32 weights are rounded to bfloat16 before anything uses them, so that adapters, exports, bundle
    and scores are based on the same numbers.
    """
    state = {name: weight.bfloat16() for name, weight in adapters.state().items()}
    if not all(weight.isfinite().all() for weight in state.values()):
        raise RunError("the last step made the adapters nan or infinite; try a lower distill.learning_rate")
    adapters.load_state(state)
    for code in codes:
        adapter = run.folder / "adapters" / code
        with naming(adapter):
            adapters.export(code, adapter, base_model=str(run.tuned.resolve()))
    write_json(run.folder / "tree.json", _tree_image(run, adapters, rows))
    save_whole(state, run.trained, {"families": json.dumps(adapters.tree.families)})


def save_whole(state: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write tensors with metadata to a safetensors file, atomically."""
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft, about)


def scored_elsewhere(run: Run, rows: Sequence[Row], stage: StageCost, bar: Bar) -> list[TokenScores] | None:
    """Return an external teacher's scores of the non-English rows; None if there is no such teacher."""
    with processes.main_first():
        return joining.scores_of(
            rows,
            run.config.distill,
            run.tokenizer,
            run.dtype,
            run.folder / "teacher_scores.jsonl",
            stage,
            bar,
            lambda model, its: Cache(run.signals, teacher_of(model, its, fingerprint(model))),
        )


def _tree_image(run: Run, adapters: TreeLora, rows: Sequence[Row]) -> dict:
    """Describe the nodes: their texts, and how many instructions each has learned from.

    Neither English replay nor bare sentences count.
    """
    own = [row.language for row in rows if not row.bare and row.language != SOURCE]
    learned = Counter(node.name for code in own for node in adapters.tree.path(code))
    texts, file, earlier = node_texts(run.config), run.folder / "tree.json", {}
    if run.trained.exists() and file.exists():
        remedy = "remove it; the count of items per node then starts from 0"
        earlier = {node["name"]: node["items"] for node in read_json(file, "nodes", remedy)["nodes"]}
    return {
        "nodes": [
            {
                "name": node.name,
                "level": node.level,
                "parent": node.parent,
                "rank": node.rank,
                "languages": list(node.languages),
                "text": texts.of(node) or "",
                "items": (learned if node.name in adapters.learning else earlier).get(node.name, 0),
            }
            for node in adapters.tree.nodes
        ]
    }


def pausing_bar(run: Run, stage: StageCost) -> Bar:
    """Return a creator of progress bars that also write the ledger, as in `pausing` and at their end."""

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.reporter.bar(what) as progress:
            yield pausing(run, stage, progress)
        run.ledger.pause(stage)

    return bar


def pausing(run: Run, stage: StageCost, progress: Progress) -> Progress:
    """Wrap a progress callback so that it also writes the ledger regularly; a kill then loses little time."""

    def report(done: int, of: int) -> None:
        if done % 50 == 0 or time.monotonic() - stage.started > 10:  # seconds
            run.ledger.pause(stage)
        progress(done, of)

    return report
