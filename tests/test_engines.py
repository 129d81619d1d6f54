"""`make engines` in small: llama.cpp gives our answers with an exported adapter of the real model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isogloss.bases import unavailable

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / "build" / "engines"
BUNDLE = ROOT / "benchmarks" / "real" / "seed-0"
ASKED = [
    "Mtumiaji anataka nini? zima taa",
    "Mtumiaji anataka nini? cheza muziki wa jazz",
    "Hii inahusu eneo gani? niamshe saa kumi na mbili",
    "Hii inahusu eneo gani? hali ya hewa ikoje kesho",
]

pytestmark = [
    pytest.mark.skipif(
        not (ENGINES / "llama" / ".ready").exists(),
        reason="needs llama.cpp: `make build/engines/llama/.ready`, ten minutes of compiling",
    ),
    pytest.mark.skipif(bool(unavailable("gemma-3-270m")), reason="needs isogloss[gemma]"),
]


def test_llama_cpp_gives_our_answers(tmp_path):
    """Four greedy answers in Swahili; at most one may differ, by a tie within float16's rounding."""
    run = tmp_path / "seed-0"
    shutil.copytree(BUNDLE, run, ignore=shutil.ignore_patterns("tuned*"))
    (run / "predictions").mkdir()
    rows = [{"language": "sw", "instruction": text} for text in ASKED]
    (run / "predictions" / "own.after.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export = ["export", run, "--language", "sw", "--format", "gguf", "--precision", "f16"]
    subprocess.run([sys.executable, "-m", "isogloss", *map(str, export)], check=True, cwd=tmp_path)
    compare = [
        ROOT / "benchmarks" / "engines.py",
        run,
        "--gguf",
        run / "exports" / "gguf",
        "--peft",
        tmp_path,
    ]
    compare += ["--venvs", ENGINES, "--work", tmp_path / "work", "--out", tmp_path / "engines.json"]
    compare += ["--engines", "llama.cpp:f16", "--languages", "sw", "--prompts", 4]
    subprocess.run([sys.executable, *map(str, compare)], check=True, cwd=tmp_path)
    (row,) = json.loads((tmp_path / "engines.json").read_text())["rows"]
    assert (row["prompts"], row["language"]) == (4, "sw")
    assert row["identical"] >= 3
    assert all(abs(one["gap"]) <= 0.05 for one in row["differences"])
