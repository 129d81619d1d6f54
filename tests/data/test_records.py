"""Files as other tools write them: splits, shards, compression, missing values, and skipped rows."""

import bz2
import gzip
import json
import lzma
import tracemalloc
import zipfile
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from isogloss.config import ChatFile, Config, ParallelSuite, TableFile, load_config
from isogloss.data.draw import first_of_each_task
from isogloss.data.examples import Turn
from isogloss.data.formats import chat_jsonl, parallel_jsonl, table
from isogloss.data.formats.records import read_records
from isogloss.data.sources import english_examples, parallel_examples
from isogloss.errors import DataError
from isogloss.evaluate.suites import SUITES

COLUMNS = {"id": "id", "language": "lang", "instruction": "q", "response": "a"}


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def frame(path: Path, rows: list[dict]) -> Path:
    """Write a Parquet file with pandas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(path)
    return path


def chat(*said: str, **more: object) -> dict:
    roles = ("user", "assistant") * 3
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return {"messages": messages, **more}


def asked(examples: list) -> list[str]:
    return [turn.instruction for example in examples for turn in example.turns.values()]


def refusal(read, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **kwargs)
    return str(caught.value)


# Folders


HUB = ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"]


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        (HUB, None, [0, 1]),
        (HUB, "test", [2]),
        (["0000", "0001"], None, [0, 1]),
        (["train/0000", "train/0001", "validation/0000"], None, [0, 1]),
        (["train", "dev"], "dev", [1]),
        (["train", "dev"], "validation", [1]),
        (["only"], None, [0]),
        (["only"], "train", [0]),
    ],
)
def test_a_folder_is_read_by_split_and_its_shards_are_joined(files, split, read, tmp_path):
    """Shards are read in the order of their names; files that name no split are train."""
    for number, name in enumerate(files):
        frame(
            tmp_path / f"{name}.parquet", [{"id": str(number), "lang": "en", "q": f"file {number}", "a": "x"}]
        )
    assert asked(table.read(tmp_path, COLUMNS, split=split)) == [f"file {number}" for number in read]


def test_other_files_beside_the_tables_are_ignored(tmp_path):
    """Such as a README or the library's dataset_infos.json."""
    frame(tmp_path / "0000.parquet", [{"q": "x"}])
    frame(tmp_path / "0001.parquet", [{"q": "y"}])
    put(tmp_path / "README.md", "# Data")
    put(tmp_path / "dataset_infos.json", "{}")
    put(tmp_path / "notes.txt", "none")
    assert asked(table.read(tmp_path, {"instruction": "q"})) == ["x", "y"]


def test_tables_of_another_type_in_a_folder_are_reported(tmp_path):
    """The library reads the most frequent type only; a hidden folder is none of the data."""
    for name in ("a.csv", "b.csv"):
        put(tmp_path / name, "q\nx\n")
    put(tmp_path / "c.jsonl.gz", lines({"q": "y"}))
    put(tmp_path / ".cache" / "d.jsonl", lines({"q": "z"}))
    told: list[str] = []
    assert asked(table.read(tmp_path, {"instruction": "q"}, tell=told.append)) == ["x", "x"]
    assert told == [f"{tmp_path}: only .csv is read, not c.jsonl.gz; keep files of one type"]


def test_a_key_twice_in_a_list_is_refused(tmp_path):
    """As in JSON lines: which of the two values is meant cannot be known."""
    path = put(tmp_path / "a.json", '[{"q": "x", "q": "y"}]')
    says = "the key 'q' occurs twice; keep one of them"
    assert refusal(table.read, path, {"instruction": "q"}) == f"{path}: {says}"


def test_rows_without_ids_are_numbered_across_shards(tmp_path):
    put(tmp_path / "train-00000-of-00002.jsonl", lines(chat("a", "b"), chat("c", "d")))
    put(tmp_path / "train-00001-of-00002.jsonl", lines(chat("e", "f")))
    assert [(e.id, e.turns["en"].instruction) for e in chat_jsonl.read(tmp_path)] == [
        ("1", "a"),
        ("2", "c"),
        ("3", "e"),
    ]


def test_an_error_names_the_shard_and_its_line(tmp_path):
    put(tmp_path / "train-00000-of-00002.jsonl", lines(chat("a", "b")))
    shard = put(tmp_path / "train-00001-of-00002.jsonl", lines(chat("e", "f"), {"message": []}))
    assert refusal(chat_jsonl.read, tmp_path) == f"{shard}:2: no key 'messages'; did you mean message?"


def test_a_folder_without_train_asks_for_the_split_setting(tmp_path):
    """Tables and chats both have the setting that the message names."""
    for name in ("test", "validation"):
        put(tmp_path / f"{name}.csv", "q\nx\n")
    says = "the folder has validation, test but no train; set data.split to one of them"
    assert refusal(table.read, tmp_path, {"instruction": "q"}) == f"{tmp_path}: {says}"
    settings = load_config(
        None, [f"data={{type: table, path: {tmp_path}, columns: {{instruction: q}}, split: test}}"]
    )
    assert isinstance(settings.data, TableFile) and settings.data.split == "test"
    chats = Config(data=ChatFile(path=tmp_path, split="validation"))
    assert isinstance(chats.data, ChatFile) and chats.data.split == "validation"


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("a.csv", "train", "a.csv: a file has no splits, so no split 'train'; remove data.split"),
        (
            "d/notes.md",
            None,
            "'notes.md' is not a supported file type; available: parquet, csv, tsv, json, jsonl, arrow",
        ),
        ("d/.hidden", None, "it must contain files in .parquet, .csv, .tsv, .json, .jsonl, .arrow"),
    ],
)
def test_splits_of_a_file_and_unsupported_files_are_refused(name, split, says, tmp_path):
    """A split would have no effect on a single file."""
    path = put(tmp_path / name, "q\nx\n")
    found = refusal(table.read, path if name == "a.csv" else path.parent, {"instruction": "q"}, split=split)
    assert found.endswith(says) and "\n" not in found


def test_a_saved_data_set_knows_its_splits(tmp_path):
    """Saved by `save_to_disk` with several splits, and with none."""
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{"q": "x"}])
    DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "d"))
    one.save_to_disk(str(tmp_path / "e"))
    columns = {"instruction": "q"}
    assert asked(table.read(tmp_path / "d", columns)) == ["x"]
    assert (
        refusal(table.read, tmp_path / "d", columns, split="tst")
        == f"{tmp_path / 'd'}: there is no split 'tst'; did you mean test?"
    )
    assert (
        refusal(table.read, tmp_path / "e", columns, split="test")
        == f"{tmp_path / 'e'}: it has no splits, so no split 'test'; remove data.split"
    )


# Files


def zipped(data: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner.jsonl", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.zip", zipped),
        ("a.zip", zipped),  # the file inside has the type
    ],
)
def test_every_compression_of_pandas_is_read(name, compress, tmp_path):
    """It is detected from the first bytes; truncated data is refused."""
    data = lines(chat("Hi", "Ho")).encode()
    (tmp_path / name).write_bytes(compress(data))
    assert asked(chat_jsonl.read(tmp_path / name)) == ["Hi"]
    (tmp_path / name).write_bytes(compress(data)[:-9])
    assert refusal(chat_jsonl.read, tmp_path / name).endswith(
        "data is damaged; download or compress the file again"
    )


def test_a_zip_of_several_files_is_refused(tmp_path):
    """It is unclear which one is meant."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", "{}")
        archive.writestr("b.jsonl", "{}")
    says = "the archive contains 2 files; it must contain one file, so unpack it"
    assert refusal(parallel_jsonl.read, tmp_path / "a.zip") == f"{tmp_path / 'a.zip'}: {says}"


@pytest.mark.parametrize("name", ["a.parquet", "chat"])
def test_a_chat_may_be_parquet(name, tmp_path):
    """Detected from its first bytes."""
    rows = [chat("Hi", "Ho", id="1", language="en"), chat("Je", "Ndiyo", id="1", language="sw")]
    (example,) = chat_jsonl.read(frame(tmp_path / name, rows))
    assert example.turns == {"en": Turn("Hi", "Ho"), "sw": Turn("Je", "Ndiyo")}


def test_parallel_rows_may_be_parquet_or_a_list(tmp_path):
    """A language that an item lacks is null, or an object of nulls."""
    rows = [
        {
            "id": 1,
            "en": {"instruction": "Hi", "response": "Ho"},
            "sw": {"instruction": "Je", "response": None},
        },
        {"id": 2, "en": {"instruction": "Bye", "response": None}, "sw": None},
    ]
    wanted = [{"en": Turn("Hi", "Ho"), "sw": Turn("Je")}, {"en": Turn("Bye")}]
    listed = put(tmp_path / "a.json", json.dumps(rows))
    nulls = put(
        tmp_path / "b.jsonl", lines(rows[0], rows[1] | {"sw": {"instruction": None, "response": None}})
    )
    for path in (frame(tmp_path / "a.parquet", rows), listed, nulls):
        assert [example.turns for example in parallel_jsonl.read(path)] == wanted


def test_text_that_pandas_would_read_as_missing_stays_as_written(tmp_path):
    """None, NA and nan are text, no is a language, and 007 is not 7."""
    path = put(tmp_path / "a.csv", "id,lang,q,a\n007,en,q,None\n008,en,q,NA\n009,no,q,nan\n")
    read = table.read(path, COLUMNS)
    assert [(e.id, *[t.response for t in e.turns.values()]) for e in read] == [
        ("007", "None"),
        ("008", "NA"),
        ("009", "nan"),
    ]


def test_a_cell_may_be_longer_than_128_kib(tmp_path):
    """That is the csv module's default limit."""
    path = put(tmp_path / "a.csv", f'q\n"{"a" * 140_000}"\n')
    assert len(asked(table.read(path, {"instruction": "q"}))[0]) == 140_000


# Missing values


def test_ids_that_pandas_made_floats_are_read_as_integers(tmp_path):
    """0.0 is 0, whether or not other rows have an ID."""
    rows = [
        chat("a", "b", id=0.0),
        chat("c", "d", id=None),
        chat("e", "f", id=float("nan")),
        chat("g", "h", id=7.0),
    ]
    assert [e.id for e in chat_jsonl.read(put(tmp_path / "a.jsonl", lines(*rows)))] == ["0", "2", "3", "7"]


def test_an_integer_column_with_missing_values_stays_integer(tmp_path):
    """Pandas turns 0 into 0.0 if a cell is empty; a column with real fractions is left alone."""
    rows = [{"q": "x", "label": 0.0, "x": 0.5}, {"q": "y", "label": None, "x": None}]
    path = frame(tmp_path / "a.parquet", rows)
    assert [e.turns["en"] for e in table.read(path, {"instruction": "q", "response": "label"})] == [
        Turn("x", "0"),
        Turn("y"),
    ]
    assert table.read(path, {"instruction": "q", "response": "x"})[0].turns["en"].response == "0.5"


def test_null_id_language_and_task_count_as_missing(tmp_path):
    """The line number, the default language and the default task take their place."""
    row = chat("Hi", "Ho", id=None, language=None, task=None)
    (example,) = chat_jsonl.read(put(tmp_path / "a.jsonl", lines(row)), "de")
    assert (example.id, example.task, list(example.turns)) == ("1", "instruction", ["de"])


# Skipped rows


def test_rows_in_unknown_languages_are_skipped_and_reported(tmp_path):
    """Every reader keeps the other rows."""
    told: list[str] = []
    path = put(tmp_path / "a.csv", "id,lang,q,a\n1,en,Hi,Ho\n1,tlh,nuq,x\n1,,?,x\n2,tlh,Qo,x\n2,en,Bye,x\n")
    assert asked(table.read(path, COLUMNS, tell=told.append)) == ["Hi", "Bye"]
    path = put(tmp_path / "a.jsonl", lines(chat("Hi", "Ho"), chat("nuq", "x", language="tlh")))
    assert asked(chat_jsonl.read(path, tell=told.append)) == ["Hi"]
    path = put(
        tmp_path / "b.jsonl", lines({"id": 1, "en": {"instruction": "Hi"}, "tlh": {"instruction": "nuq"}})
    )
    assert asked(parallel_jsonl.read(path, tell=told.append)) == ["Hi"]
    unknown = "in the unknown language 'tlh'"
    assert told == [
        f"{tmp_path}/a.csv: 5 rows, skipped: 2 {unknown}; 1 without a language",
        f"{tmp_path}/a.jsonl: 2 rows, skipped: 1 {unknown}",
        f"{tmp_path}/b.jsonl: 2 rows, skipped: 1 {unknown}",
    ]


def test_a_file_of_only_unknown_languages_is_refused(tmp_path):
    """The message names the first row."""
    path = put(tmp_path / "a.jsonl", lines(chat("nuq", "x", language="tlh"), chat("Qo", "x", language="qya")))
    says = "'tlh' is not a known language code; use one such as sw, swh_Latn or Swahili"
    assert refusal(chat_jsonl.read, path) == f"{path}:1: {says}"


def test_the_stages_report_skipped_rows(tmp_path):
    """The reader's report reaches the caller through the settings' data, and a suite's notes."""
    rows = [
        chat("Hi", "Ho", id=1),
        chat("Je", "x", id=1, language="sw"),
        chat("nuq", "x", id=1, language="tlh"),
    ]
    path = put(tmp_path / "a.jsonl", lines(*rows))
    config, told = Config(data=ChatFile(path=path)), []
    english_examples(config, None, told.append)
    parallel_examples(config, None, ["sw"], told.append)
    assert told == [f"{path}: 3 rows, skipped: 1 in the unknown language 'tlh'"] * 2
    wide = {"id": 1, "en": {"instruction": "Hi"}, "sw": {"instruction": "Je"}, "tlh": {"instruction": "nuq"}}
    path = put(tmp_path / "b.jsonl", lines(wide))
    suite = SUITES["parallel"](None, "dev", ["sw"], 9, 9, options=ParallelSuite(path=path))
    assert suite.notes == (f"{path}: 3 rows, skipped: 1 in the unknown language 'tlh'",)


# Chats


def weighed(weight: object, key: str = "weight") -> dict:
    row = chat("Hi", "Ho")
    row["messages"][1][key] = weight
    return row


@pytest.mark.parametrize(
    "row",
    [
        weighed(0),
        weighed(0.0),
        weighed(False, "train"),
        weighed(False, "loss"),
        chat("Hi", "Ho", weight=0),
        chat("Hi", "Ho", weight="0"),
        chat("Hi", "Ho", train="False"),
    ],
)
def test_a_row_with_weight_0_is_skipped(row, tmp_path):
    """Weights of 1 and null change nothing."""
    told: list[str] = []
    path = put(tmp_path / "a.jsonl", lines(row, weighed(1), weighed(None), weighed(True, "train")))
    assert [e.id for e in chat_jsonl.read(path, tell=told.append)] == ["2", "3", "4"]
    assert told == [f"{path}: 4 rows, skipped: 1 that are marked as not for training"]
    says = "it is marked as not for training; at least one row must be used"
    assert refusal(chat_jsonl.read, put(path, lines(row))) == f"{path}:1: {says}"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (weighed(0.5), "'weight' is 0.5; it must be 1 or 0, for training or not"),
        (weighed("no", "train"), "'train' is 'no'; it must be 1 or 0, for training or not"),
        (
            chat("Hi", "Ho", loss_mask=[0, 1]),
            "'loss_mask' marks parts of an answer for training, which is not supported: "
            "answers are trained on as a whole, so remove the row or the key",
        ),
    ],
)
def test_unsupported_weights_and_loss_masks_are_refused(row, says, tmp_path):
    """The message names the key."""
    path = put(tmp_path / "a.jsonl", lines(row))
    assert refusal(chat_jsonl.read, path) == f"{path}:1: {says}"


def test_only_the_first_of_several_turns_is_read(tmp_path):
    """The others are reported as skipped; a weight of 0 on a later response does not matter."""
    told: list[str] = []
    later = chat("a", "b", "c", "d", id="x")
    later["messages"][3]["weight"] = 0
    path = put(tmp_path / "a.jsonl", lines(later, chat("e", "f"), chat("g", "h", "i")))
    assert [e.turns["en"] for e in chat_jsonl.read(path, tell=told.append)] == [
        Turn("a", "b"),
        Turn("e", "f"),
        Turn("g", "h"),
    ]
    assert told == [f"{path}: 3 rows, skipped: all after the first turn of 2"]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"name": "f"}]},
        {"tools": '[{"name": "f"}]'},
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
                {"role": "tool", "content": "7"},
            ]
        },
    ],
)
def test_chats_with_tools_are_skipped_and_reported(more, tmp_path):
    """Their prompt is more than their messages; an empty list of tools, also as a text, does not count."""
    told: list[str] = []
    none = [chat("Hi", "Ho", tools=tools) for tools in ([], "[]", " {} ", "", "null", "None")]
    path = put(tmp_path / "a.jsonl", lines(chat("Hi", "Ho") | more, *none))
    assert [e.id for e in chat_jsonl.read(path, tell=told.append)] == ["2", "3", "4", "5", "6", "7"]
    assert told == [f"{path}: 7 rows, skipped: 1 that call tools"]


SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A"},
    ]
}


@pytest.mark.parametrize(
    ("row", "turn"),
    [
        (SHAREGPT, Turn("S\n\nQ", "A")),
        ({"prompt": "Q", "completion": "A"}, Turn("Q", "A")),
        (
            {
                "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            Turn("S\n\nQ", "A"),
        ),
        ({"instruction": "Q", "input": "I", "output": "A"}, Turn("Q\n\nI", "A")),
        ({"instruction": "Q", "input": "", "output": "A"}, Turn("Q", "A")),
        ({"instruction": "Q"}, Turn("Q")),
        ({"prompt": "Do this: Q. A", "instruction": "Q", "output": "A"}, Turn("Q", "A")),
        ({"prompt": "Q", "instruction": "Be brief.", "completion": "A"}, Turn("Q", "A")),
        (
            {
                "messages": [
                    {"role": "developer", "content": "S"},
                    {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": "A"},
                ]
            },
            Turn("S\n\nQ", "A"),
        ),
    ],
)
def test_every_layout_of_a_chat_is_detected_by_its_keys(row, turn, tmp_path):
    """ShareGPT, prompt and completion, Alpaca, and messages."""
    assert chat_jsonl.read(put(tmp_path / "a.jsonl", lines(row)))[0].turns["en"] == turn
    assert chat_jsonl.read(put(tmp_path / "a.json", json.dumps([row])))[0].turns["en"] == turn


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv"])
def test_rows_are_read_lazily(name, tmp_path):
    """An invalid second row only raises when it is reached, and the message has its line."""
    first = b'{"q": "x"}\n' if "json" in name else b"q\nx\n"
    data = first + b"\xff\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = read_records(path)
    assert next(rows).cells == {"q": "x"}
    with pytest.raises(DataError, match=f":{data.count(10)}: the text is not UTF-8"):
        next(rows)


def test_a_table_with_a_date_after_9999_is_refused(tmp_path):
    """Python has no such date, so the row cannot be read."""
    at = pyarrow.array([2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"q": ["Hi"], "at": at}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"the table cannot be read \(.*\); write it again$"):
        table.read(tmp_path / "t.parquet", {"instruction": "q"})


def test_row_numbers_continue_across_batches(tmp_path):
    """In both Arrow formats, and in a table with more rows than are read at a time."""
    import pyarrow
    import pyarrow.parquet

    whole = pyarrow.table({"q": [str(n) for n in range(70_000)]})
    pyarrow.parquet.write_table(whole, tmp_path / "a.parquet")
    *_, last = read_records(tmp_path / "a.parquet")
    assert last[1:] == (70_000, 70_000, {"q": "69999"})
    batches = pyarrow.table({"q": ["a", "b", "c"]}).to_batches(max_chunksize=2)
    for name, write in (("f.arrow", pyarrow.ipc.new_file), ("s.arrow", pyarrow.ipc.new_stream)):
        with write(tmp_path / name, batches[0].schema) as file:
            for batch in batches:
                file.write_batch(batch)
        assert [(one.line, one.cells["q"]) for one in read_records(tmp_path / name)] == [
            (1, "a"), (2, "b"), (3, "c"),
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_are_streamed_and_not_held_in_memory(kind, tmp_path):
    """Reading two megabytes takes less than a quarter of a megabyte."""
    long = "x" * 400
    rows = [f'{{"q": "{n} {long}"}}' if kind == "jsonl" else f"{n} {long}" for n in range(5000)]
    path = put(tmp_path / f"a.{kind}", "\n".join([*(["q"] if kind == "csv" else []), *rows]) + "\n")
    tracemalloc.start()
    assert sum(1 for _ in read_records(path)) == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250_000 and path.stat().st_size > 2_000_000


def test_stage_1_draws_the_same_from_more_rows_than_it_holds(tmp_path, monkeypatch):
    """From two files with equal IDs, whose Swahili rows it does not use."""
    for name in ("a", "b"):
        rows = [chat(f"ask {name}{n}", f"say {n}") for n in range(150)]
        put(tmp_path / f"{name}.jsonl", lines(*rows, {**chat("x", "y"), "language": "sw", "id": "sw"}))
    sources = tuple(ChatFile(path=tmp_path / f"{name}.jsonl", english_items=9) for name in ("a", "b"))
    whole = english_examples(Config(data=sources), None)
    monkeypatch.setattr("isogloss.data.draw.FEWEST_HELD", 1)
    held = []
    first = first_of_each_task
    monkeypatch.setattr(
        "isogloss.data.sources.first_of_each_task", lambda *given: held.append(first(*given)) or held[-1]
    )
    assert english_examples(Config(data=sources), None) == whole and len(whole) == 18
    assert [len(some) for some in held] == [9, 9]


def test_records_have_their_line_or_row_number(tmp_path):
    """Text files count lines, at the first one of a quoted field; Parquet counts rows."""
    path = put(tmp_path / "a.csv", 'q\n"a\nb"\nc\n')
    assert [(r.line, r.cells["q"]) for r in read_records(path)] == [(2, "a\nb"), (4, "c")]
    path = frame(tmp_path / "a.parquet", [{"q": "a"}, {"q": "b"}])
    assert [(r.line, r.number, r.cells["q"]) for r in read_records(path)] == [(1, 1, "a"), (2, 2, "b")]


SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]


def test_system_and_history_of_a_row_are_read(tmp_path):
    """As in LLaMA-Factory's files; a system message among the messages comes before the row's own."""
    rows = [
        {"instruction": "Hi", "output": "Ho", "system": "Be brief."},
        {"conversations": SHAREGPT, "system": "Be brief."},
        chat("Hi", "Ho", system=""),
        {
            "messages": [{"role": "system", "content": "Be kind."}, *chat("Hi", "Ho")["messages"]],
            "system": "No.",
        },
        {"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]},
    ]
    told: list[str] = []
    path = put(tmp_path / "a.jsonl", lines(*rows))
    assert [e.turns["en"] for e in chat_jsonl.read(path, tell=told.append)] == [
        Turn("Be brief.\n\nHi", "Ho"),
        Turn("Be brief.\n\nHi", "Ho"),
        Turn("Hi", "Ho"),
        Turn("Be kind.\n\nHi", "Ho"),
        Turn("S\n\na", "b"),
    ]
    assert told == [f"{path}: 5 rows, skipped: all after the first turn of 1"]
    empty = [{"instruction": "c", "output": "d", "history": none} for none in ("[]", "", "null", [], None)]
    path = put(tmp_path / "a.jsonl", lines(*empty))
    assert [e.turns["en"] for e in chat_jsonl.read(path)] == [Turn("c", "d")] * 5
    path = put(tmp_path / "a.jsonl", lines({"instruction": "c", "history": ["a"]}))
    says = "'history' must be a list of pairs, each a user's text and its answer"
    assert refusal(chat_jsonl.read, path) == f"{path}:1: {says}"


@pytest.mark.parametrize(("asked", "more"), [(["a"], "b"), ("a", {"x": 1})])
def test_an_instruction_or_input_that_is_no_text_is_refused(tmp_path, asked, more):
    """Python's spelling of a list must not become an instruction."""
    path = put(tmp_path / "a.jsonl", lines({"instruction": asked, "input": more, "output": "d"}))
    says = "'instruction' or its input is not text; write both as text"
    assert refusal(chat_jsonl.read, path) == f"{path}:1: {says}"


@pytest.mark.parametrize("key", ["completion", "response", "output"])
def test_the_answer_to_a_prompt_is_read_and_other_keys_are_named(key, tmp_path):
    told: list[str] = []
    rows = [
        {"prompt": "Hi", key: "Ho", "source": "x"},
        {"prompt": "Bye", key: "Oh", "score": 3, "lang": "sw"},
    ]
    path = put(tmp_path / "a.jsonl", lines(*rows))
    assert [e.turns for e in chat_jsonl.read(path, tell=told.append)] == [
        {"en": Turn("Hi", "Ho")},
        {"sw": Turn("Bye", "Oh")},
    ]
    assert told == [f"{path}: not read: source, score"]


def test_sharegpt_rows_with_tools_or_roles_out_of_order_are_skipped(tmp_path):
    told: list[str] = []
    rows = [
        {"conversations": [*SHAREGPT, {"from": "function_call", "value": "{}"}]},
        {"conversations": [SHAREGPT[0], {"from": "observation", "value": "7"}, SHAREGPT[1]]},
        {"conversations": SHAREGPT[::-1]},
        {"conversations": SHAREGPT},
    ]
    path = put(tmp_path / "a.jsonl", lines(*rows))
    assert [e.id for e in chat_jsonl.read(path, tell=told.append)] == ["4"]
    assert told == [f"{path}: 4 rows, skipped: 2 that call tools; 1 whose roles are out of order"]
