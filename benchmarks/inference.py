"""Cost of the adapters at inference: the same prompts with and without them, alternating in one process.

    python benchmarks/inference.py --out benchmarks/inference.json

Batches of 1 and 32 rows, cycling through the demo's twelve languages, each row on its language's path; all
answers have the same number of tokens. `times` is the seconds with adapters divided by the seconds of the
model as loaded by transformers; medians over repetitions, without the first.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import about, put

from isogloss.adapters.decode import decode
from isogloss.adapters.fit import lora_shape
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import build_tree
from isogloss.config import load_config
from isogloss.data.chat import encode_prompt, pad
from isogloss.data.sources import parallel_examples
from isogloss.model.load import load_model, load_tokenizer, pad_id, pick_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=24, help="tokens per answer")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config, dtype = load_config(), pick_dtype(asked.dtype)
    settings, codes = config.distill.adapter, list(config.languages.targets)
    tokenizer = load_tokenizer(asked.model)
    tree = build_tree(codes, ranks=settings.ranks.model_dump())
    alone, under = (load_model(asked.model, dtype) for _ in range(2))
    adapters = TreeLora(under, tree, **lora_shape(under, settings))
    examples = parallel_examples(config, None, codes)
    rows = []
    for batch in (1, 32):
        languages = [codes[n % len(codes)] for n in range(batch)]
        prompts = [
            list(encode_prompt(tokenizer, examples[n].turns[code].instruction))
            for n, code in enumerate(languages)
        ]

        def answer(on: bool, languages: list[str] = languages, prompts: list = prompts) -> float:
            began = time.perf_counter()
            if on:
                adapters.set_path(languages)
            ids, mask = pad(prompts, pad_id(tokenizer), "left")
            how: dict[str, Any] = {"ends": (), "pad": pad_id(tokenizer), "max_new_tokens": asked.tokens}
            with torch.no_grad():
                decode(adapters.model if on else alone, ids, mask, **how)
            return time.perf_counter() - began

        taken = [(answer(False), answer(True)) for _ in range(asked.repeat + 1)][1:]
        bare, aligned = (statistics.median(one) for one in zip(*taken, strict=True))
        rows.append(
            {
                "batch": batch,
                "languages": len(set(languages)),
                "tokens": asked.tokens,
                "bare_s": bare,
                "aligned_s": aligned,
                "times": statistics.median(on / off for off, on in taken),
            }
        )
        print(
            f"batch {batch:2}: {bare:.3f} s without, {aligned:.3f} s with adapters, "
            f"{rows[-1]['times']:.2f} times"
        )
    if asked.out:
        here = {"model": asked.model, "dtype": str(dtype).removeprefix("torch.")}
        here |= about("isogloss", "torch", "transformers", "peft")
        put([row | here for row in rows], asked.out)


if __name__ == "__main__":
    main()
