"""Text: one canonical form for everything that is read, whatever the source."""

import json
import unicodedata
from importlib import resources
from pathlib import Path

import pytest

from isogloss.data.formats import chat_jsonl, flores, massive, parallel_jsonl, squad, table, xnli
from isogloss.data.formats.lines import read_lines, read_objects
from isogloss.data.text import canonical
from isogloss.errors import DataError

NFC, NFD = "Tiếng Việt", "Tie\u0302\u0301ng Vie\u0323\u0302t"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (NFD, NFC),
        ("\u0958", "\u0915\u093c"),  # Devanagari qa: a letter and its nukta, by Unicode's own rule
        ("\u0627\u0653", "\u0622"),  # Arabic alef and madda
        ("\u1112\u1161\u11ab", "\ud55c"),  # Hangul
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("\ufeffa\ufeff", "a"),
        ("a\0b", "ab"),
    ],
)
def test_a_text_has_one_form(text, form):
    """Equivalent spellings become equal, line ends line feeds; byte order marks and NUL are removed."""
    assert canonical(text) == form


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian: the non-joiner separates a prefix
        "क्\u200dष",  # Devanagari: the joiner keeps the half letter
        "\u200fنعم\u200e",
        "ＡＢ\ufb01",  # full width, a ligature: compatible, not equivalent
        "Hi\u2028all",
        "รูปแบบ",
    ],
)
def test_characters_that_a_script_needs_are_kept(text):
    """Joiners, direction marks, compatibility characters and line separators are text."""
    assert canonical(text) == text


def test_half_a_surrogate_pair_is_refused():
    """It cannot be encoded; the message names field, file and line."""
    with pytest.raises(DataError) as error:
        canonical("a\ud800", "the instruction", Path("a.jsonl"), 3)
    assert (
        str(error.value)
        == "a.jsonl:3: the instruction contains half of a surrogate pair; write the whole character"
    )


def both(text: str, folder: Path, name: str) -> list[Path]:
    """Write the same file in NFC and, with a byte order mark and carriage returns, in NFD."""
    paths = []
    for form, change in (("NFC", str), ("NFD", lambda t: "\ufeff" + t.replace("\n", "\r\n"))):
        path = folder / form / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(change(unicodedata.normalize(form, text)).encode())
        paths.append(path)
    return paths


WIDE = {"id": "1", "en": {"instruction": "Say it"}, "vi": {"instruction": NFC, "response": NFC}}
CHAT = {
    "messages": [{"role": "user", "content": NFC}, {"role": "assistant", "content": NFC}],
    "language": "vi",
}
MASSIVE = {"id": "1", "partition": "dev", "scenario": "s", "intent": "i", "utt": NFC, "annot_utt": NFC}
QUESTION = {"id": "1", "question": NFC, "answers": [{"text": NFC}]}
SQUAD = {"data": [{"paragraphs": [{"context": NFC, "qas": [QUESTION]}]}]}
ASKED = {"instruction": "q"}


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("a.txt", NFC, read_lines),
        ("a.jsonl", json.dumps({NFC: [NFC]}, ensure_ascii=False), lambda p: list(read_objects(p))),
        ("a.jsonl", json.dumps(WIDE, ensure_ascii=False), parallel_jsonl.read),
        ("a.jsonl", json.dumps(CHAT, ensure_ascii=False), chat_jsonl.read),
        ("t.csv", f'q\n"{NFC}\n{NFC}"', lambda p: table.read(p, ASKED)),
        ("t.tsv", f"q\n{NFC}", lambda p: table.read(p, ASKED)),
        ("t.json", json.dumps([{"q": NFC}], ensure_ascii=False), lambda p: table.read(p, ASKED)),
        ("a.json", json.dumps(SQUAD, ensure_ascii=False), squad.read),
        (
            "flores101_dataset/dev/vie.dev",
            NFC,
            lambda p: flores.read(p.parents[2], "dev", ["vi"]),
        ),
        (
            "massive/vi-VN.jsonl",
            json.dumps(MASSIVE, ensure_ascii=False),
            lambda p: massive.read(p.parents[1], "dev", ["vi"]),
        ),
        ("XNLI/vi.dev", f"{NFC}\t{NFC}\tneutral", lambda p: xnli.read(p.parents[1], "dev", ["vi"])),
    ],
)
def test_a_decomposed_file_is_read_as_the_composed_one(name, text, read, tmp_path):
    """Every reader returns the canonical form, also with byte order marks and carriage returns."""
    composed, decomposed = both(text + "\n", tmp_path, name)
    assert read(decomposed) == read(composed)
    assert NFC in repr(read(decomposed))


def test_a_decomposed_parquet_file_is_read_as_the_composed_one(tmp_path):
    """Both cells and column names are normalised."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{NFD: NFD, "m": [NFD]}]), tmp_path / "t.parquet")
    (read,) = table.read(tmp_path / "t.parquet", {"instruction": NFC})
    assert read.turns["en"].instruction == NFC


def test_letters_that_json_escapes_have_the_same_form(tmp_path):
    """Python's json escapes é by default, and NUL only occurs escaped."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "language": "fr", "instruction": "e\\u0301\\u0000te\\u0301"}\n')
    assert parallel_jsonl.read(path)[0].turns["fr"].instruction == "été"


def test_a_request_is_normalised():
    """Both plain content and each part of a list."""
    from isogloss.serve.app import Message

    parts = [{"type": "text", "text": NFD}, {"type": "text", "text": "\r\n"}]
    for content, form in ((NFD, NFC), (parts, NFC + "\n")):
        message = Message.model_validate({"role": "user", "content": content})
        assert message.plain() == {"role": "user", "content": form}


def test_half_a_surrogate_pair_in_an_unused_field_is_ignored(tmp_path):
    """The source field of a chat may contain anything."""
    row = CHAT | {"source": "\ud800"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert chat_jsonl.read(path)[0].turns["vi"].instruction == NFC


def test_the_packages_own_texts_are_normalised():
    """They are compared with normalised input."""
    files = [
        file
        for part in ("data/demo/phrases", "teacher", "evaluate/suites", "languages", "data/tasks")
        for file in resources.files("isogloss").joinpath(part).iterdir()
        if file.name.endswith(".yaml")
    ]
    assert len(files) > 18
    for file in files:
        text = file.read_text("utf-8")
        assert canonical(text) == text, file.name
