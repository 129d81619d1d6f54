"""Closed questions scored by likelihood, open ones answered: items per second of ours and lm-eval-harness.

    python benchmarks/evaluate.py --data-root ../shared/data --out benchmarks/evaluate.json
    python benchmarks/evaluate.py --data-root ../shared/data --suite mlqa --items 48 --model FOLDER

Every contender runs in a separate process on the same items and prompts, with the same model and dtype. The
clock starts when model and items are in memory and stops when the accuracy is computed: it includes chat
template, tokenisation, forward passes and metric. `load_s` is the remaining time, including library imports;
`cpu_s` is CPU time within the clock, over all threads. The harness runs once per batch size, and its fastest
is the row. `same_answers` is the share of items with the same answer from both.

`--retrieval` (FLORES-101) and `--all-languages` (XNLI) only time our evaluation of twelve languages: the
reference model's side of a suite as in `isogloss evaluate`. Install `isogloss[lm-eval]`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import about, put

TASKS = Path(__file__).parents[1] / "examples" / "lm_eval"
SUITES = {"xnli": "sw", "pawsx": "es", "mlqa": "es"}
"""Suites compared, with the language of each."""
OPEN = "mlqa"
"""Suite whose answers are generated, greedily; the others are scored by likelihood."""
NEW_TOKENS = 24
CODES = ("ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi")
Asked = argparse.Namespace


class Clock:
    """Context manager that measures wall-clock and CPU seconds."""

    def __enter__(self) -> "Clock":
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self.began
        self.cpu_s = time.process_time() - self.cpu_began


def row(clock: Clock, items: int, **more: Any) -> dict[str, Any]:
    return {
        "items": items,
        "items_per_s": items / clock.seconds,
        "seconds": clock.seconds,
        "cpu_s": clock.cpu_s,
        **more,
    }


def base(asked: Asked) -> Any:
    import torch

    from isogloss.model.load import load_model

    return load_model(asked.model, getattr(torch, asked.dtype)).to(asked.device)


def items_of(asked: Asked) -> list[Any]:
    """Return the items of the suite in the language, which all contenders get."""
    from isogloss.evaluate.suites import SUITES as LOADERS

    (name,), code = asked.suite, asked.language
    suite = LOADERS[name](asked.data_root, "dev", [code], asked.items, 0)
    return [item for item in suite.items if code in item.turns][: asked.items]


# --- contenders


def isogloss(asked: Asked) -> dict[str, Any]:
    """Score items with the package."""
    from peft import PeftModel

    from isogloss.adapters.generate import answers
    from isogloss.evaluate.likelihood import log_probabilities
    from isogloss.model.load import load_tokenizer

    (name,), code = asked.suite, asked.language
    items = items_of(asked)
    model, tokenizer = base(asked), load_tokenizer(asked.model)
    if asked.adapter:
        model = PeftModel.from_pretrained(model, str(asked.adapter)).eval()
    if name == OPEN:
        with Clock() as clock:
            texts = [item.turns[code].instruction for item in items]
            said = answers(model, tokenizer, texts, batch=int(asked.batch[0]), max_new_tokens=NEW_TOKENS)
            right = sum(map(str.__eq__, said, [item.turns[code].response or "" for item in items]))
        return row(clock, len(items), accuracy=right / len(items), answers=said)
    with Clock() as clock:
        scores = log_probabilities(
            model,
            tokenizer,
            [item.turns[code].instruction for item in items],
            [item.options[code] for item in items],
            batch=int(asked.batch[0]),
        )
        best = [max(one, key=lambda key: one[key]) for one in scores]
        right = sum(answer == item.gold for answer, item in zip(best, items, strict=True))
    places = [list(one).index(answer) for one, answer in zip(scores, best, strict=True)]
    return row(clock, len(items), accuracy=right / len(items), answers=places)


def harness(asked: Asked) -> dict[str, Any]:
    """Score items with the harness's Hugging Face model, without the bootstrap for standard errors."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from isogloss.model.load import model_folder

    folder, batch = model_folder(asked.model), asked.batch[0]
    if asked.suite[0] == OPEN:
        return written(asked, folder)
    given = {"pretrained": folder, "language": asked.language, "data_root": str(asked.data_root)}
    task = f"isogloss_{asked.suite[0]}"
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={**given, "items": asked.items}
    )
    loaded = manager.load([task])
    model = HFLM(
        pretrained=folder,
        peft=asked.adapter and str(asked.adapter),
        dtype=asked.dtype,
        device=asked.device,
        batch_size=batch if batch == "auto" else int(batch),
    )
    scores: dict[int, list[float]] = {}
    scored = model.loglikelihood

    def kept(requests: list, **options: Any) -> list:
        found = scored(requests, **options)
        for request, (value, _) in zip(requests, found, strict=True):
            scores.setdefault(request.doc_id, []).append(value)
        return found

    model.loglikelihood = kept
    with Clock() as clock:
        done = evaluate(model, loaded, bootstrap_iters=0, apply_chat_template=True, log_samples=False)
    places = [values.index(max(values)) for _, values in sorted(scores.items())]
    return row(clock, len(places), accuracy=done["results"][task]["acc,none"], answers=places)


def written(asked: Asked, folder: str) -> dict[str, Any]:
    """Answer the open questions with the harness's Hugging Face model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from isogloss.data.chat import end_of_turn
    from isogloss.model.load import load_tokenizer

    code, tokenizer, items = asked.language, load_tokenizer(asked.model), items_of(asked)
    batch = asked.batch[0]
    model = HFLM(
        pretrained=folder,
        tokenizer=tokenizer,
        peft=asked.adapter and str(asked.adapter),
        dtype=asked.dtype,
        device=asked.device,
        batch_size=batch if batch == "auto" else int(batch),
        add_bos_token=False,  # the chat template writes it
    )
    how = {"until": [end_of_turn(tokenizer)], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    with Clock() as clock:
        requests = []
        for number, item in enumerate(items):
            chat = [{"role": "user", "content": item.turns[code].instruction}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            requests.append(Instance("generate_until", {}, (text, how), number))
        said = [answer.strip() for answer in model.generate_until(requests)]
        right = sum(map(str.__eq__, said, [item.turns[code].response or "" for item in items]))
    return row(clock, len(items), accuracy=right / len(items), answers=said)


# --- our own evaluation of twelve languages


def side(asked: Asked, name: str) -> dict[str, Any]:
    """Time the reference model's side of a suite, as in a run; English answers come from the data."""
    from isogloss.config import Evaluate
    from isogloss.evaluate import retrieval, runner
    from isogloss.evaluate.suites import load_suite
    from isogloss.languages import SOURCE
    from isogloss.model.load import load_tokenizer

    settings = Evaluate(split="dev", items=asked.items, sentences=997, likelihood=("xnli",))
    suite = load_suite(name, asked.data_root, settings, CODES)
    subject = retrieval.Model(base(asked), load_tokenizer(asked.model))
    english = [item.turns[SOURCE].response or "" for item in runner.twinned(suite)]
    with Clock() as clock:
        quiet = lambda done, of: None  # noqa: E731
        retriever = retrieval.retriever(subject, subject, suite, settings, quiet)
        found = runner.evaluate_side(subject, suite, CODES, english, retriever, settings, 0, quiet)
    measure = "retrieval" if suite.sentences else "accuracy"
    each = len(suite.sentences[SOURCE]) if suite.sentences else len(suite.items)
    return row(clock, each * len(CODES), accuracy=found.scores[measure]["mean"], languages=len(CODES))


CONTENDERS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "isogloss": isogloss,
    "lm-eval": harness,
    "retrieval": lambda asked: side(asked, "flores101"),
    "all-languages": lambda asked: side(asked, "xnli"),
}


# --- one run


def apart(contender: str, suite: str, batch: str, asked: Asked) -> dict[str, Any] | None:
    """Run a contender in a separate process and return its row; None if it failed."""
    command = [sys.executable, __file__, "--inside", contender, "--suite", suite, "--batch", batch]
    command += ["--language", asked.language or SUITES.get(suite, ""), "--items", str(asked.items)]
    command += ["--data-root", str(asked.data_root), "--model", asked.model, "--dtype", asked.dtype]
    command += ["--device", asked.device]
    command += ["--adapter", str(asked.adapter)] if asked.adapter else []
    began = time.monotonic()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    took = time.monotonic() - began
    if done.returncode:
        print(f"{suite} {contender} batch {batch}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    found = json.loads(done.stdout.strip().split("\n")[-1])
    found = {
        "suite": suite,
        "contender": contender,
        "batch": batch,
        "dtype": asked.dtype,
        "model": asked.model,
        **({"adapter": asked.adapter.name} if asked.adapter else {}),
        **found,
        "load_s": took - found["seconds"],
    }
    print(
        f"{suite:9} {contender:13} batch {batch:>4} {found['items']:6} items {found['seconds']:7.1f} s "
        f"{found['items_per_s']:7.1f} items/s  CPU {found['cpu_s']:6.1f} s  "
        f"accuracy {found['accuracy']:.4f}",
        flush=True,
    )
    return found


def compared(suite: str, asked: Asked) -> list[dict[str, Any]]:
    """Return our row and the harness's fastest, with their ratios."""
    ours = apart("isogloss", suite, str(asked.ours), asked)
    tries = [found for batch in asked.batch if (found := apart("lm-eval", suite, batch, asked))]
    if ours is None or not tries:
        raise SystemExit(1)
    theirs = max(tries, key=lambda one: one["items_per_s"])
    theirs["tried"] = {one["batch"]: one["items_per_s"] for one in tries}
    answers = [one.pop("answers") for one in (ours, theirs)]
    ours["same_answers"] = sum(one == other for one, other in zip(*answers, strict=True)) / len(answers[0])
    ours["times"] = ours["items_per_s"] / theirs["items_per_s"]
    ours["times_cpu"] = theirs["cpu_s"] / ours["cpu_s"]
    print(
        f"{suite:9} {ours['times']:.2f} times the items per second, {ours['times_cpu']:.2f} by CPU time; "
        f"same answer on {ours['same_answers']:.2%}"
    )
    return [one | {"language": asked.language or SUITES[suite]} for one in (ours, theirs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--suite", action="append", help="xnli, pawsx or mlqa; default: all")
    parser.add_argument("--language", help="language of the comparison; default: each suite's own")
    parser.add_argument("--items", type=int, default=2490, help="maximum items per suite and language")
    parser.add_argument(
        "--batch", action="append", help="batch size of lm-eval, repeatable; default: 8, 64 and auto"
    )
    parser.add_argument("--ours", type=int, default=64, help="our batch size")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapter", type=Path, help="a PEFT adapter for the model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--retrieval", action="store_true", help="only FLORES-101 dev in twelve languages")
    parser.add_argument("--all-languages", action="store_true", help="only XNLI dev in twelve languages")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(CONTENDERS[asked.inside](asked)))
        return
    asked.batch = asked.batch or ["8", "64", "auto"]
    alone = {"retrieval": "flores101", "all-languages": "xnli"}
    chosen = [name for name in alone if getattr(asked, name.replace("-", "_"))]
    rows = [apart(name, alone[name], str(asked.ours), asked) for name in chosen]
    for suite in [] if chosen else asked.suite or SUITES:
        rows += compared(suite, asked)
    if asked.out:
        done = [_what(one) for one in rows if one]
        old = json.loads(asked.out.read_text("utf-8")) if asked.out.exists() else []
        kept = [one for one in old if _what(one) not in done]
        new = [one | about("isogloss", "lm-eval", "torch", "transformers", "peft") for one in rows if one]
        put([*kept, *new], asked.out)
    if None in rows:
        raise SystemExit(1)


def _what(row: Mapping[str, Any]) -> tuple:
    """Return what a row is about; a newer row replaces one about the same."""
    names = ("suite", "contender", "language", "dtype", "adapter")
    return row.get("model", "demo"), *(row.get(name) for name in names)


if __name__ == "__main__":
    main()
