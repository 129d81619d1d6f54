"""Detecting the layout of a file from its first row, and the output of `isogloss data`."""

import json

import pytest

from isogloss.cli import main
from isogloss.data.formats import layouts
from isogloss.errors import DataError

SAID = {"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "It is blue."}
ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
ROWS = {
    "Alpaca": (ALPACA, "chat", "Name a colour.", "Blue."),
    "Alpaca, an input": (
        {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
        "chat",
        "Add the numbers.\n\n2 and 3", "5",
    ),
    "Dolly": (
        {"instruction": "Who wrote it?", "context": "Ann wrote it.", "response": "Ann.", "category": "qa"},
        "chat", "Who wrote it?\n\nAnn wrote it.", "Ann.",
    ),
    "messages": ({"messages": [*SAID]}, "chat", "What colour is the sky?", "It is blue."),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]},
        "chat", "Hello", "Hi!",
    ),
    "Alpaca, a prompt": (ALPACA | {"prompt": "Name a colour. Blue."}, "chat", "Name a colour.", "Blue."),
    "prompt and completion": (
        {"prompt": "The sky is", "completion": " blue."}, "chat", "The sky is", " blue.",
    ),
    "prompt and completion as messages": (
        {"prompt": [SAID[0]], "completion": [SAID[1]]}, "chat", "What colour is the sky?", "It is blue.",
    ),
    "all languages in a row": (
        {"id": "1", "en": {"instruction": "Hello", "response": "Hi!"}, "sw": None},
        "parallel", "Hello", "Hi!",
    ),
    "one language a row": (
        {"id": "1", "language": "eng_Latn", "instruction": "Hello", "response": "Hi!"},
        "parallel", "Hello", "Hi!",
    ),
}  # fmt: skip


def put(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_each_layout_is_detected_by_its_keys(tmp_path, name):
    row, kind, instruction, response = ROWS[name]
    layout, (example,) = layouts.read(put(tmp_path / "a.jsonl", row))
    assert layout.type == kind
    assert (example.turns["en"].instruction, example.turns["en"].response) == (instruction, response)


@pytest.mark.parametrize("context", ["", "Colours."])
def test_an_empty_cell_does_not_decide_the_layout(context, tmp_path):
    """The columns do: without IDs, or with a context, rows are chats that name their language."""
    (path := tmp_path / "a.csv").write_text(
        f"instruction,context,response,language\nSay hi.,{context},Hi.,sw\nSay ho.,A song.,Ho.,sw\n"
    )
    layout, (first, _) = layouts.read(path)
    assert (layout.type, first.turns["sw"].response) == ("chat", "Hi.")
    said = {"instruction": "Say hi.", "response": "Hi.", "language": "sw"}
    layout, (only,) = layouts.read(put(tmp_path / "a.jsonl", said))
    assert (layout.type, only.turns["sw"].response) == ("chat", "Hi.")


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
def test_a_layout_is_detected_in_any_type_of_file(tmp_path, ending):
    """The files are written by pandas."""
    import pandas as pd

    path, frame = tmp_path / f"a.{ending}", pd.DataFrame([ALPACA, ALPACA | {"output": "Red."}])
    match ending:
        case "json":
            frame.to_json(path, orient="records")
        case "csv":
            frame.to_csv(path, index=False)
        case "parquet":
            frame.to_parquet(path)
    layout, examples = layouts.read(path)
    assert layout.name == "instruction and output (Alpaca, Dolly)"
    assert [e.turns["en"].response for e in examples] == ["Blue.", "Red."]


def test_unknown_keys_are_named_in_the_error(tmp_path):
    path = put(tmp_path / "a.jsonl", {"question": "x", "answer": "y"})
    with pytest.raises(DataError) as error:
        layouts.read(path)
    assert str(error.value) == (
        f"{path}:1: the keys are question, answer, which match no known layout; map them in the "
        "settings, as data: {type: table, columns: {instruction: …, response: …}}"
    )


def test_an_empty_file_is_refused(tmp_path):
    path = put(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="the file has no rows; it must have at least one"):
        layouts.read(path)


def test_the_command_counts_languages_and_lists_skipped_rows(tmp_path, capsys):
    """It reads two English rows and one Swahili; an unknown language, tools and a second turn are skipped."""
    rows = [
        {"messages": [*SAID]},
        {"messages": [*SAID, *SAID]},
        {"messages": [SAID[0]], "language": "sw"},
        {"messages": [*SAID], "language": "tlh"},
        {"messages": [*SAID], "tools": ["search"]},
    ]
    path = put(tmp_path / "a.jsonl", *rows)
    with pytest.raises(SystemExit) as ended:
        main(["data", str(path)])
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        f"{path}: messages; 3 items, 1 task; read it with data: {{type: chat, path: {json.dumps(str(path))}}}"
        in said
    )
    assert ["en", "2", "2", "23"] in [line.split() for line in said]
    assert ["sw", "1", "0", "23"] in [line.split() for line in said]
    assert f"left out: {path}:2: it has several turns" in said
    assert any(line.startswith(f"left out: {path}:4: 'tlh' is not a known language code") for line in said)
    assert f"left out: {path}:5: it calls tools; remove such chats" in said


def test_the_command_names_a_malformed_row(tmp_path, capsys):
    path = put(tmp_path / "a.jsonl", {"messages": [*SAID]}, {"messages": [{"role": "boss", "content": "x"}]})
    with pytest.raises(SystemExit) as ended:
        main(["data", str(path)])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.startswith(f"error {path}:2: 'boss' is not a role; ")
