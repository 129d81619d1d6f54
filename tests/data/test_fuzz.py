"""Damaged files: every loader either reads on or reports the wrong file in one line."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xglue_files import FILES, put, squad

from isogloss.config import ParallelSuite, Xglue
from isogloss.data.formats import chat_jsonl, flores, massive, parallel_jsonl, xnli
from isogloss.data.formats import table as tables
from isogloss.errors import DataError
from isogloss.evaluate.suites import SUITES

ROWS = 4
FEW = settings(max_examples=12, deadline=None, database=None, derandomize=True)


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(header: str, *rows: str) -> str:
    return "".join(line + "\n" for line in (header, *rows))


@dataclass(frozen=True)
class Loader:
    """Test files by name, the one to damage, the function that loads them, and the field separator."""

    files: dict[str, str]
    damaged: str
    load: Callable[[Path], Any]
    between: str | None = None


def suite(name: str, split: str = "dev", **options: Any) -> Callable[[Path], Any]:
    return lambda root: SUITES[name](root, split, ["es"], 10, 10, **options)


def own(path: Path) -> Any:
    return SUITES["parallel"](None, "dev", ["es"], 9, 9, options=ParallelSuite(path=path))


def massive_row(n: int, code: str) -> dict:
    return {
        "id": str(n), "partition": "dev", "scenario": "alarm", "intent": "alarm_set",
        "utt": f"{code} {n}", "annot_utt": f"{code} [time : {n}]",
    }  # fmt: skip


def copa_row(n: int, code: str) -> dict:
    texts = {"premise": f"{code} p {n}", "choice1": f"{code} a", "choice2": f"{code} b"}
    return texts | {"question": "cause", "label": n % 2, "idx": n}


NUMBERS = range(1, ROWS + 1)
SENTENCES = table(*(f"sentence {n}" for n in NUMBERS))
WIDE = [{"id": n, "en": {"instruction": f"e {n}"}, "es": {"instruction": f"s {n}"}} for n in NUMBERS]
CHATS = [
    {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]}
    for n in NUMBERS
]
PAIRS = [f"{code}\tneutral\t{code} a {n}\t{code} b {n}\t{n}" for code in ("en", "es") for n in NUMBERS]
SIB = {
    f"sib-200/{code}/dev.tsv": table(
        "index_id\tcategory\ttext", *(f"{n}\thealth\t{code} {n}" for n in NUMBERS)
    )
    for code in ("eng_Latn", "spa_Latn")
}
XNLI = "XNLI-1.0/xnli.dev.tsv"
LOADERS = {
    "flores": Loader(
        {f"flores101_dataset/dev/{code}.dev": SENTENCES for code in ("eng", "spa")},
        "flores101_dataset/dev/spa.dev",
        lambda root: flores.read(root, "dev", ["en", "es"]),
    ),
    "flores+": Loader(
        {
            f"flores_plus/dev/{code}.jsonl": jsonl(*({"id": n, "text": f"{code} {n}"} for n in NUMBERS))
            for code in ("eng_Latn", "spa_Latn")
        },
        "flores_plus/dev/spa_Latn.jsonl",
        lambda root: flores.read(root, "dev", ["en", "es"]),
    ),
    "ntrex": Loader(
        {
            f"NTREX-128/newstest2019-{name}.txt": table(*(f"{name} {n}" for n in NUMBERS))
            for name in ("src.eng", "ref.spa")
        },
        "NTREX-128/newstest2019-ref.spa.txt",
        lambda root: flores.read_ntrex(root, ["en", "es"]),
    ),
    "xnli": Loader(
        {
            XNLI: table(
                "language\tgold_label\tsentence1\tsentence2\tpairID",
                *PAIRS,
            )
        },
        XNLI,
        lambda root: xnli.read(root, "dev", ["en", "es"]),
        "\t",
    ),
    "massive": Loader(
        {
            f"massive/{code}.jsonl": jsonl(*(massive_row(n, code) for n in NUMBERS))
            for code in ("en-US", "es-ES")
        },
        "massive/es-ES.jsonl",
        lambda root: massive.read(root, "dev", ["en", "es"]),
    ),
    "pawsx": Loader(
        {
            f"pawsx/{code}/dev_2k.tsv": table(
                "id\tsentence1\tsentence2\tlabel", *(f"{n}\t{code} a\t{code} b\t1" for n in NUMBERS)
            )
            for code in ("en", "es")
        },
        "pawsx/es/dev_2k.tsv",
        suite("pawsx"),
        "\t",
    ),
    "sib200": Loader(SIB, "sib-200/spa_Latn/dev.tsv", suite("sib200"), "\t"),
    "xcopa": Loader(
        {f"xcopa/data/{c}/val.{c}.jsonl": jsonl(*(copa_row(n, c) for n in NUMBERS)) for c in ("en", "tr")},
        "xcopa/data/tr/val.tr.jsonl",
        lambda root: SUITES["xcopa"](root, "dev", ["tr"], 10, 10),
    ),
    "xquad": Loader(
        {
            f"xquad/xquad.{code}.json": squad(("a", f"{code} x", "q", "x"), ("b", f"{code} y", "q", "y"))
            for code in ("en", "es")
        },
        "xquad/xquad.es.json",
        suite("xquad", "test"),
    ),
    "language_confusion": Loader(
        {
            f"language_confusion/monolingual/aya/{code}.csv": table(
                "prompt,source,language", *(f"{code} {n},aya,{code}" for n in NUMBERS)
            )
            for code in ("en", "es")
        },
        "language_confusion/monolingual/aya/es.csv",
        suite("language_confusion"),
        ",",
    ),
    "parallel": Loader(
        {"own.jsonl": jsonl(*WIDE)},
        "own.jsonl",
        lambda root: own(root / "own.jsonl"),
    ),
    "parallel rows": Loader(
        {"own.jsonl": jsonl(*({"id": n, "language": "en", "instruction": f"e {n}"} for n in NUMBERS))},
        "own.jsonl",
        lambda root: parallel_jsonl.read(root / "own.jsonl"),
    ),
    "chat": Loader(
        {
            "own.jsonl": jsonl(
                *CHATS
            )
        },
        "own.jsonl",
        lambda root: chat_jsonl.read(root / "own.jsonl"),
    ),
    "table": Loader(
        {"own.csv": table("id,lang,q,a", *(f"{n},en,q {n},a" for n in NUMBERS))},
        "own.csv",
        lambda root: tables.read(
            root / "own.csv", {"id": "id", "language": "lang", "instruction": "q", "response": "a"}
        ),
        ",",
    ),
    "alpaca": Loader(
        {"own.json": jsonl(*({"instruction": f"q {n}", "input": "", "output": "a"} for n in NUMBERS))},
        "own.json",
        lambda root: chat_jsonl.read(root / "own.json"),
    ),
} | {
    f"xglue {name}": Loader(
        {},
        f"xglue_full_dataset/{name}",
        suite("xglue", options=Xglue(tasks=(name.split("/")[0],), skip_missing=True)),
        None if name.startswith(("QG", "NTG", "MLQA", "NER", "POS")) else "\t",
    )
    for name in FILES
    if "es" in name
}  # fmt: skip


def lay(loader: Loader, root: Path) -> Path:
    """Write the undamaged files and return the one to damage."""
    if not loader.files:
        put(root)
    for name, text in loader.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / loader.damaged


def outcome(loader: Loader, root: Path, path: Path) -> Any:
    """Return what is read, or the error message, which must be one line naming a file under the root."""
    try:
        found = loader.load(root)
    except DataError as error:
        assert "\n" not in str(error) and str(root) in str(error), str(error)
        return str(error)
    return (found.items, found.sentences) if hasattr(found, "sentences") else found


@pytest.fixture(params=LOADERS, name="loader")
def _loader(request) -> Loader:
    return LOADERS[request.param]


def test_byte_order_marks_and_carriage_returns_change_nothing(loader, tmp_path):
    path = lay(loader, tmp_path)
    wanted, text = outcome(loader, tmp_path, path), path.read_bytes()
    assert not isinstance(wanted, str), wanted
    for changed in (b"\xef\xbb\xbf" + text, text.replace(b"\n", b"\r\n")):
        path.write_bytes(changed)
        assert outcome(loader, tmp_path, path) == wanted


def test_an_empty_file_is_refused(loader, tmp_path):
    """The message names the file."""
    path = lay(loader, tmp_path)
    path.write_bytes(b"")
    assert isinstance(found := outcome(loader, tmp_path, path), str) and path.name in found


@FEW
@given(
    name=st.sampled_from(sorted(LOADERS)),
    place=st.floats(0, 0.999),
    byte=st.sampled_from([b"\xff", b"\xc3("]),
)
def test_invalid_utf8_is_refused(name, place, byte):
    """The message names the line of the first bad byte."""
    with tempfile.TemporaryDirectory() as folder:
        loader = LOADERS[name]
        path = lay(loader, Path(folder))
        text = path.read_text("utf-8")
        at = int(place * len(text))
        path.write_bytes(text[:at].encode() + byte + text[at:].encode())
        line = text[:at].count("\n") + 1
        wanted = f"{path}:{line}: the text is not UTF-8; convert the file to UTF-8"
        assert outcome(loader, Path(folder), path) == wanted


@pytest.mark.parametrize("name", [name for name, loader in LOADERS.items() if loader.between])
@pytest.mark.parametrize("more", [True, False])
def test_a_row_with_a_field_too_many_or_too_few_is_refused(name, more, tmp_path):
    """This holds for every row, and the message names its line."""
    loader = LOADERS[name]
    path = lay(loader, tmp_path)
    lines = path.read_text("utf-8").split("\n")[:-1]
    for number in range(1, len(lines)):
        fields = lines[number].split(loader.between)
        fields = [*fields, "more"] if more else fields[:-1]
        path.write_text("\n".join([*lines[:number], loader.between.join(fields), *lines[number + 1 :], ""]))
        found = outcome(loader, tmp_path, path)
        assert isinstance(found, str) and found.startswith(f"{path}:{number + 1}: "), found


DAMAGES = ("drop", "double", "swap", "huge", "cut", "blank", "noise", "json", "nul")
VALUES = (None, 1, 1.5, True, [], {}, "", "\ud800", [{}], {"en": 1}, 10**400)


@settings(max_examples=250, deadline=None, database=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(LOADERS)),
    damage=st.sampled_from(DAMAGES),
    place=st.floats(0, 0.999),
    value=st.sampled_from(VALUES),
    noise=st.binary(max_size=40),
)
def test_damage_only_raises_one_line_errors(name, damage, place, value, noise):
    """Lines dropped, doubled, swapped, huge, cut or blank, stray bytes, JSON values of another type."""
    with tempfile.TemporaryDirectory() as folder:
        loader = LOADERS[name]
        path = lay(loader, Path(folder))
        lines = path.read_text("utf-8").split("\n")[:-1] or [path.read_text("utf-8")]
        n = int(place * len(lines))
        match damage:
            case "drop":
                lines.pop(n)
            case "double":
                lines.insert(n, lines[n])
            case "swap":
                lines[n], lines[0] = lines[0], lines[n]
            case "huge":
                lines[n] = "a" * 300_000
            case "cut":
                lines = [*lines[:n], lines[n][: len(lines[n]) // 2]]
            case "blank":
                lines[n] = " "
            case "json" if lines[n].startswith("{"):
                lines[n] = mutated(lines[n], place, value)
            case "nul":
                lines[n] += "\0"
        text = "".join(line + "\n" for line in lines).encode()
        at = int(place * len(text))
        path.write_bytes(text[:at] + noise + text[at:] if damage == "noise" else text)
        outcome(loader, Path(folder), path)


def mutated(line: str, place: float, value: Any) -> str:
    row = json.loads(line)
    keys = sorted(row)
    row[keys[int(place * 1000) % len(keys)]] = value
    return json.dumps(row)


@pytest.mark.parametrize("name", ["flores", "ntrex", "xnli", "massive", "flores+"])
def test_languages_with_different_numbers_of_rows_are_refused(name, tmp_path):
    """A row that one language lacks never shifts the others."""
    loader = LOADERS[name]
    path = lay(loader, tmp_path)
    lines = path.read_text("utf-8").split("\n")[:-1]
    path.write_text("".join(line + "\n" for line in lines[:-1]))
    assert isinstance(found := outcome(loader, tmp_path, path), str) and path.name in found
