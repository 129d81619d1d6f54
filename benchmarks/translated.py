"""Compare training on a base model's own translations, filtered and unfiltered, with human translations.

    python benchmarks/translated.py --data-root FOLDER --reference runs/real --out benchmarks/translated.json

The base model translates English MASSIVE questions with few-shot prompts (`isogloss translate`). Stage 2 then
trains from one reference model on the human translations, on the base's, and on those of the base's that pass
the filter. Rows have consistency on MASSIVE dev by language before and after, and `share`: the gain relative
to that with human translations. A stopped benchmark resumes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from machine import about, put

BASE = "gemma-3-270m"
DEMONSTRATIONS = 64
"""Number of parallel questions from which the few-shot examples are taken; not used for training."""
FULL = ("people", "translated", "filtered")


def command(*words: object) -> None:
    """Run an isogloss command, as a user would."""
    subprocess.run([sys.executable, "-m", "isogloss", *map(str, words)], check=True)


def write_data(folder: Path, codes: Sequence[str], items: int, data_root: Path) -> None:
    """Write the drawn questions in English and with human translations, and others as few-shot examples."""
    from isogloss.config import load_config
    from isogloss.data.examples import ParallelExample
    from isogloss.data.formats import parallel_jsonl
    from isogloss.data.sources import parallel_examples

    settings = load_config(
        None, ["data={type: massive, tasks: [intent, scenario]}", f"languages.targets=[{','.join(codes)}]"]
    )
    drawn = [
        e for e in parallel_examples(settings, data_root, codes) if all(code in e.turns for code in codes)
    ]
    learned, shown = drawn[:items], drawn[items : items + DEMONSTRATIONS]

    def only(examples: Sequence[ParallelExample], *kept: str) -> list[ParallelExample]:
        return [ParallelExample(e.id, e.task, {code: e.turns[code] for code in kept}) for e in examples]

    parallel_jsonl.write(folder / "english.jsonl", only(learned, "en"))
    parallel_jsonl.write(folder / "people.jsonl", only(learned, "en", *codes))
    parallel_jsonl.write(folder / "demonstrations.jsonl", only(shown, "en", *codes))


def write_unfiltered(folder: Path, codes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Write all of the base's translations, filtered or not; return how many were made and kept."""
    lines = {one["id"]: one for one in map(json.loads, (folder / "filtered.jsonl").open(encoding="utf-8"))}
    counts = {code: {"made": 0, "kept": 0} for code in codes}
    for one in lines.values():
        for code in codes:
            counts[code]["kept"] += code in one
            counts[code]["made"] += code in one
    english = map(json.loads, (folder / "english.jsonl").open(encoding="utf-8"))
    whole = {one["id"]: one | lines.get(one["id"], {}) for one in english}
    for one in map(json.loads, (folder / "filtered.translate" / "dropped.jsonl").open(encoding="utf-8")):
        if one["text"] and one["part"] == "instruction" and one["language"] not in whole[one["id"]]:
            whole[one["id"]][one["language"]] = {"instruction": one["text"]}
            counts[one["language"]]["made"] += 1
    rows = (json.dumps(one, ensure_ascii=False) + "\n" for one in whole.values())
    (folder / "translated.jsonl").write_text("".join(rows), encoding="utf-8")
    return counts


def trained(folder: Path, name: str, given: argparse.Namespace) -> dict:
    """Run stage 2 on one set of translations, evaluate it, and return the MASSIVE scores."""
    run = folder / name
    if not (run / "tuned").exists():
        run.mkdir(parents=True, exist_ok=True)
        shutil.copytree(given.reference / "tuned", run / "tuned.part", dirs_exist_ok=True)
        (run / "tuned.part").rename(run / "tuned")
    settings = {
        "run": run,
        "model": BASE,
        "compile": str(given.compile).lower(),
        "data": f"{{type: parallel, path: {folder / (name + '.jsonl')}}}",
        "languages.targets": f"[{','.join(given.codes)}]",
        "languages.items": f"{{high: {given.items}, middle: {given.items}, low: {given.items}}}",
        "distill.responses": "teacher",
        "distill.epochs": given.epochs,
        "distill.cache": folder / "cache",
        "evaluate.suites": "[massive]",
        "evaluate.items": given.eval_items,
        "evaluate.split": "dev",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command("run", "--data-root", given.data_root, *words)
    return json.loads((run / "scores.json").read_text("utf-8"))["suites"]["massive"]


def main() -> None:
    """Translate, train on each set, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True, help="a run whose tuned model is used")
    parser.add_argument("--codes", type=lambda text: text.split(","), default=["es", "fr", "hi"])
    parser.add_argument("--items", type=int, default=384, help="number of questions to translate")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--eval-items", type=int, default=300)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/translated"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, given.codes, given.items, given.data_root)
    command(
        "translate", folder / "english.jsonl", "--to", ",".join(given.codes), "--model", BASE,
        "--examples", folder / "demonstrations.jsonl", "--instructions-only", "--likeness", BASE,
        "--out", folder / "filtered.jsonl",
    )  # fmt: skip
    counts = write_unfiltered(folder, given.codes)
    rows, gains = [], {}
    for name in FULL:
        scores = trained(folder, name, given)
        before, after = (
            {code: one["value"] for code, one in scores[side]["consistency"]["languages"].items()}
            for side in ("before", "after")
        )
        gains[name] = {code: after[code] - before[code] for code in given.codes}
        means = {"before": fmean(before.values()), "after": fmean(after.values())}
        share = fmean(gains[name].values()) / fmean(gains["people"].values())
        rows.append({"data": name, **means, "share": share, "languages": {"before": before, "after": after}})
    about_data = {"base": BASE, "items": given.items, "epochs": given.epochs, "translations": counts}
    put(about_data | about("isogloss", "torch", "transformers") | {"rows": rows}, given.out)


if __name__ == "__main__":
    main()
