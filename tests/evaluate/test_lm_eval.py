"""lm-evaluation-harness and our own scoring agree on the same model, adapter and items."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isogloss import load_peft
from isogloss.config import load_config
from isogloss.evaluate.likelihood import log_probabilities
from isogloss.evaluate.suites import SUITES
from isogloss.export.adapters import export
from isogloss.export.lm_eval import results
from isogloss.model.load import load_model, load_tokenizer
from isogloss.pipeline import evaluation, training
from isogloss.pipeline.folder import Run, open_run

TASKS = Path(__file__).parents[2] / "examples" / "lm_eval"
FACTS = (
    ("The market opens at dawn.", "The market is open in the morning.", "entailment"),
    ("She bought bread.", "She bought nothing.", "contradiction"),
    ("He lives in Berlin.", "He has two children.", "neutral"),
    ("All trains were late today.", "No train was late.", "contradiction"),
)
TATSACHEN = (
    ("Der Markt öffnet im Morgengrauen.", "Der Markt ist am Morgen offen."),
    ("Sie hat Brot gekauft.", "Sie hat nichts gekauft."),
    ("Er wohnt in Berlin.", "Er hat zwei Kinder."),
    ("Alle Züge waren heute verspätet.", "Kein Zug war verspätet, sagt \"man\"."),
)  # fmt: skip
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'isogloss[lm-eval]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return a data root with XNLI and PAWS-X in English and German."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["language\tgold_label\tsentence1\tsentence2"]
    lines += [f"en\t{label}\t{first}\t{second}" for first, second, label in FACTS]
    lines += [f"de\t{FACTS[n][2]}\t{first}\t{second}" for n, (first, second) in enumerate(TATSACHEN)]
    _write(folder / "XNLI-1.0" / "xnli.dev.tsv", lines)
    for code, pairs in (("en", [fact[:2] for fact in FACTS]), ("de", TATSACHEN)):
        rows = [f"{n}\t{first}\t{second}\t{int(n % 3 == 0)}" for n, (first, second) in enumerate(pairs)]
        _write(folder / "pawsx" / code / "dev_2k.tsv", ["id\tsentence1\tsentence2\tlabel", *rows])
    return folder


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Run:
    """Return a run of the packaged base with random adapters, German exported, evaluated on both suites."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    both = ("evaluate.suites=[xnli,pawsx]", "evaluate.likelihood=[xnli,pawsx]", "evaluate.split=dev")
    settings = ("languages.targets=[de]", f"run={folder}", f"data_root={root}", "dtype=float32", *both)
    run = open_run(load_config(None, settings))
    load_model("demo", torch.float32).save_pretrained(run.tuned)
    load_tokenizer("demo").save_pretrained(run.tuned)
    torch.manual_seed(1)
    adapters = run.student(run.reference_model(), trained=False)
    training.save_whole(
        {name: torch.randn_like(p) * 0.05 for name, p in adapters.state().items()}, run.trained
    )
    export(run, ["de"], "peft", folder / "adapters")
    evaluation.run_evaluate(run)
    return run


@pytest.fixture(scope="module")
def harness(run, root, tmp_path_factory) -> Path:
    """Return the folder that the harness's own command writes for the exported adapter."""
    out = tmp_path_factory.mktemp("harness")
    model = f"pretrained={run.tuned},peft={run.folder / 'adapters' / 'de'},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model]
    command += ["--include_path", str(TASKS), "--tasks", "isogloss_xnli,isogloss_pawsx"]
    command += ["--metadata", json.dumps({"language": "de", "data_root": str(root)})]
    command += ["--apply_chat_template", "--device", "cpu", "--batch_size", "3", "--log_samples"]
    done = subprocess.run(
        [*command, "--output_path", str(out)], capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TASKS.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", ["xnli", "pawsx"])
def test_an_exported_adapter_scores_in_the_harness_as_it_does_here(name, harness, run, root):
    """Every option of every item has the same log-probability, so answers and accuracy are the same."""
    suite = SUITES[name](root, "dev", ["de"], 100, 0)
    model, tokenizer = load_peft(run.folder, "de")
    ours = log_probabilities(
        model, tokenizer, [item.turns["de"].instruction for item in suite.items],
        [item.options["de"] for item in suite.items],
    )  # fmt: skip
    (file,) = harness.rglob(f"samples_isogloss_{name}_*.jsonl")
    theirs = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
    theirs.sort(key=lambda row: row["doc_id"])
    assert [row["doc"]["id"] for row in theirs] == [item.id for item in suite.items]
    for item, mine, row in zip(suite.items, ours, theirs, strict=True):
        assert [float(one[0]) for one in row["filtered_resps"]] == pytest.approx(
            list(mine.values()), abs=1e-3
        )
        assert row["acc"] == float(max(mine, key=lambda key: mine[key]) == item.gold)


def test_our_results_file_has_the_keys_and_scores_of_the_harness(harness, run):
    """Accuracy and its standard error are equal to the last digit."""
    (written,) = harness.rglob("results_*.json")
    theirs, ours = json.loads(written.read_text("utf-8")), results(run, "after")
    assert set(ours) == set(theirs) | {"groups"}  # the harness writes groups only if one defines an average
    assert set(ours["config"]) == set(theirs["config"])
    for name in ("xnli", "pawsx"):
        mine, task = f"{name}_de", f"isogloss_{name}"
        for section in ("versions", "n-shot", "n-samples"):
            assert str(ours[section][mine]) == str(theirs[section][task])
        assert set(ours["configs"][mine]) <= set(theirs["configs"][task])
        assert ours["higher_is_better"][mine]["acc"] is theirs["higher_is_better"][task]["acc"] is True
        assert ours["results"][mine].keys() >= theirs["results"][task].keys()
        for metric in ("sample_len", "acc,none", "acc_stderr,none"):
            assert ours["results"][mine][metric] == theirs["results"][task][metric]
    for key in ("chat_template", "chat_template_sha", "eot_token_id", "tokenizer_pad_token", "max_length"):
        assert ours[key] == theirs[key]
