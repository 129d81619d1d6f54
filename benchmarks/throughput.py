"""Throughput of a mixed batch of languages: vLLM with our adapters, our own `serve`, and merged models.

    python benchmarks/throughput.py RUN --peft FOLDER --merged FOLDER --venvs FOLDER --out throughput.json

Follows `make engines`, whose environments, exports and prompts it uses. Every contender answers the same
prompts in float32, greedily, with as many requests in flight as there are languages, languages alternating.
Contenders run one at a time; starting up and one warm-up request per language are not counted. `tokens` are
those that the servers report for their answers.

    serve           `isogloss serve`: all adapters over one model
    vllm-adapters   vLLM with all adapters as LoRA modules over the tuned model
    vllm-merged     vLLM with the merged model of one language, which gets all prompts: what each of as many
                    separate servers would do, with as many models in memory
"""

import argparse
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engines import endpoint, installed, parsed, questions, serving, vllm, vllm_server, wait_for
from machine import about, put

NEW_TOKENS = 24
Asked = argparse.Namespace


def serve(asked: Asked, codes: list[str], port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of our own server, and its environment variables."""
    command = [sys.executable, "-m", "isogloss", "serve", str(asked.run), "--port", str(port)]
    return command, {"OMP_NUM_THREADS": str(asked.threads)}


def adapters(asked: Asked, codes: list[str], port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of vLLM with all languages as LoRA modules, and its environment variables."""
    return vllm(asked, "float32", codes, port)


def merged(asked: Asked, codes: list[str], port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of vLLM with one language's merged model under every language's name."""
    model = next(path for path in sorted(asked.merged.iterdir()) if path.is_dir())
    return vllm_server(asked, model, "float32", port, {"served-model-name": codes})


CONTENDERS = {"serve": serve, "vllm-adapters": adapters, "vllm-merged": merged}


def measure(asked: Asked, name: str, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Start a contender, send all requests, and return its tokens and requests per second."""
    import psutil

    port, client = endpoint()
    command, variables = CONTENDERS[name](asked, list(texts), port)
    log = asked.work / f"throughput-{name}.log"

    def ask(one: tuple[str, str]) -> int:
        code, prompt = one
        made = client.chat.completions.create(
            model=code,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=NEW_TOKENS,
        )
        assert made.usage is not None
        return made.usage.completion_tokens

    # Languages alternate, so that every batch is mixed.
    rounds = itertools.zip_longest(*([(code, text) for text in some] for code, some in texts.items()))
    requests = [one for some in rounds for one in some if one]
    with serving(command, log, **variables) as process:
        wait_for(client, process, log)
        with ThreadPoolExecutor(len(texts)) as pool:
            list(pool.map(ask, requests[: len(texts)]))
            started = time.perf_counter()
            tokens = sum(pool.map(ask, requests))
            seconds = time.perf_counter() - started
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        memory = sum(one.memory_full_info().uss for one in tree)
    return {
        "contender": name,
        "requests": len(requests),
        "in_flight": len(texts),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(requests) / seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
        "memory_bytes": memory,
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument(
        "--merged", type=Path, required=True, help="output of `isogloss export --format merged`"
    )
    parse.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parse.add_argument("--max-loras", type=int, default=12)
    asked = parsed(parse)
    texts = questions(asked)
    rows = [measure(asked, name, texts) for name in asked.contenders]
    found = about("isogloss", "torch", "transformers") | {"vllm": installed(asked, "vllm")}
    put(found | {"new_tokens": NEW_TOKENS, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
