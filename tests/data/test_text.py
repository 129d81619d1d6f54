"""Text: one form for all that comes in, whatever it was read from."""

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
    """Equivalent spellings are one; line ends are line feeds; byte order marks and NUL are gone."""
    assert canonical(text) == form


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian: the non-joiner parts a prefix
        "क्\u200dष",  # Devanagari: the joiner keeps the half letter
        "\u200fنعم\u200e",
        "ＡＢ\ufb01",  # full width, a ligature: compatible, not equivalent
        "Hi\u2028all",
        "รูปแบบ",
    ],
)
def test_what_a_script_is_written_with_stays(text):
    """Joiners, direction marks, compatibility characters and line separators are text."""
    assert canonical(text) == text


def test_half_a_surrogate_pair_is_refused_by_name_and_line():
    """It is no character and cannot be written."""
    with pytest.raises(DataError) as error:
        canonical("a\ud800", "the instruction", Path("a.jsonl"), 3)
    assert (
        str(error.value)
        == "a.jsonl:3: the instruction holds half of a surrogate pair; write the whole character"
    )


def both(text: str, folder: Path, name: str) -> list[Path]:
    """The same file in NFC and, with a byte order mark and carriage returns, in NFD."""
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
    """Every reader has the one form, byte order marks and carriage returns included."""
    composed, decomposed = both(text + "\n", tmp_path, name)
    assert read(decomposed) == read(composed)
    assert NFC in repr(read(decomposed))


def test_a_decomposed_parquet_file_is_read_as_the_composed_one(tmp_path):
    """Cells and names of columns too."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{NFD: NFD, "m": [NFD]}]), tmp_path / "t.parquet")
    (read,) = table.read(tmp_path / "t.parquet", {"instruction": NFC})
    assert read.turns["en"].instruction == NFC


def test_letters_that_json_escapes_have_the_same_form(tmp_path):
    """Python writes é so by default; a NUL comes in no other way."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "language": "fr", "instruction": "e\\u0301\\u0000te\\u0301"}\n')
    assert parallel_jsonl.read(path)[0].turns["fr"].instruction == "été"


def test_a_request_has_the_form():
    """Of its whole content, and of each part."""
    from isogloss.serve.app import Message

    parts = [{"type": "text", "text": NFD}, {"type": "text", "text": "\r\n"}]
    for content, form in ((NFD, NFC), (parts, NFC + "\n")):
        message = Message.model_validate({"role": "user", "content": content})
        assert message.plain() == {"role": "user", "content": form}


def test_half_a_surrogate_pair_in_a_field_that_nobody_reads_is_no_harm(tmp_path):
    """A chat's source may hold anything."""
    row = CHAT | {"source": "\ud800"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert chat_jsonl.read(path)[0].turns["vi"].instruction == NFC


def test_the_texts_of_the_package_have_the_form():
    """Wordings are compared with what was read."""
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
