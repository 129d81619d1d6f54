"""Peak memory and CPU time of reading a JSON Lines file of millions of rows.

    python benchmarks/reading.py --rows 2000000 --out benchmarks/reading.json

The file is generated: chats of one turn, a tenth of them not ASCII. Each way of reading it runs in a separate
process; the peak is the process's `ru_maxrss` minus its value before reading.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import put

WAYS = {
    "one row after the other": "rows",
    "stage 1, english_items 1000": "stage 1",
    "all items": "all",
}


def write(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            place = "Ορεινή πόλη" if number % 10 == 0 else "town in the hills"
            asked = f"Write the {number}th sentence about a {place}, and say how many people live there."
            said = (
                f"It is a {place} where {number * 7919 % 100_000} people live, most of them since {number}."
            )
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def read(path: Path, way: str) -> dict:
    from isogloss.config import ChatFile, Config
    from isogloss.data.formats import layouts
    from isogloss.data.formats.records import read_records
    from isogloss.data.sources import english_examples

    before, began = peak(), time.process_time()
    match way:
        case "rows":
            held = sum(1 for _ in read_records(path, kind="jsonl"))
        case "stage 1":
            held = len(english_examples(Config(data=ChatFile(path=path, english_items=1000)), None))
        case _:
            held = len(layouts.read(path)[1])
    return {
        "items": held,
        "peak_mb": round(peak() - before, 1),
        "seconds": round(time.process_time() - began, 1),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000])
    parser.add_argument("--ways", nargs="+", default=list(WAYS.values()), choices=list(WAYS.values()))
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    parser.add_argument("--read", nargs=2, metavar=("FILE", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(Path(given.read[0]), given.read[1])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in given.rows:
            path = Path(folder) / "rows.jsonl"
            write(path, count)
            for name, way in WAYS.items():
                if way in given.ways:
                    line = [sys.executable, __file__, "--read", str(path), way]
                    said = subprocess.run(
                        line, capture_output=True, text=True, check=True, env=os.environ
                    ).stdout
                    size = round(path.stat().st_size / 2**20, 1)
                    rows.append({"rows": count, "file_mb": size, "way": name, **json.loads(said)})
                    print(*rows[-1].values(), flush=True)
    put({"rows": rows}, given.out)


if __name__ == "__main__":
    main()
