"""Data formats: what each reads, and the one-line message of each refusal."""

import gzip
import json
import os
from pathlib import Path

import pytest

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import chat_jsonl, flores, massive, parallel_jsonl, table, xnli
from isogloss.data.formats.massive import MassiveRow
from isogloss.data.formats.xnli import XnliRow
from isogloss.errors import DataError

DATA = Path(os.environ.get("ISOGLOSS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}; set ISOGLOSS_DATA"),
]
WIDE = (
    '{"id": "1", "task": "qa", "en": {"instruction": "Hi", "response": "Ho"}, '
    '"swh_Latn": {"instruction": "Je"}}'
)
ONE_TWO_LANGUAGES = ParallelExample("1", "qa", {"en": Turn("Hi", "Ho"), "sw": Turn("Je")})


def put(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def refusal(read, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **kwargs)
    return str(caught.value)


def test_parallel_reads_all_languages_of_a_line(tmp_path: Path) -> None:
    """Any data set's language code is accepted, and a missing response is None."""
    assert parallel_jsonl.read(put(tmp_path / "a.jsonl", WIDE)) == [ONE_TWO_LANGUAGES]


def test_parallel_joins_rows_by_id(tmp_path: Path) -> None:
    """Rows that share an ID are one example, wherever they occur; U+2028 is text, not a line end."""
    path = put(
        tmp_path / "a.jsonl",
        '{"id": 1, "language": "en", "instruction": "Hi\u2028all", "response": "Ho"}',
        '{"id": 2, "language": "en", "instruction": "Bye"}',
        "",
        '{"id": 1, "language": "sw", "instruction": "Je"}',
    )
    assert parallel_jsonl.read(path) == [
        ParallelExample("1", "instruction", {"en": Turn("Hi\u2028all", "Ho"), "sw": Turn("Je")}),
        ParallelExample("2", "instruction", {"en": Turn("Bye")}),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_parallel_reads_what_it_writes(tmp_path: Path, name: str) -> None:
    """Indonesian (`id`) survives the round trip too, and no temporary file is left."""
    examples = [ParallelExample("1", "qa", {"en": Turn("Hi", ""), "id": Turn("Hai\n", "Ho")})]
    parallel_jsonl.write(tmp_path / name, examples)
    assert examples == parallel_jsonl.read(tmp_path / name)
    assert [name] == [path.name for path in tmp_path.iterdir()]


def test_parallel_writes_readable_lines(tmp_path: Path) -> None:
    """A line is plain UTF-8, and an absent response has no key."""
    parallel_jsonl.write(tmp_path / "a.jsonl", [ParallelExample("1", "qa", {"ar": Turn("سلام")})])
    assert (tmp_path / "a.jsonl").read_text() == '{"id": "1", "task": "qa", "ar": {"instruction": "سلام"}}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Its content stays, and no temporary file is left."""
    path = put(tmp_path / "a.jsonl", WIDE)
    with pytest.raises(UnicodeEncodeError):
        parallel_jsonl.write(path, [ParallelExample("1", "qa", {"en": Turn("\ud800")})])
    assert parallel_jsonl.read(path) == [ONE_TWO_LANGUAGES]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


EN = '"en": {"instruction": "Hi"}'
ROW = '{"id": "1", "language": "en", "instruction": "Hi"}'


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "1: not JSON at column 2 (Expecting property name enclosed in double quotes); "
         "each line must be one JSON object"),
        (["[]"], "1: the line is a list; each line must be one JSON object"),
        ([f"{{{EN}}}"], "1: no id; give each item text or an integer"),
        ([f'{{"id": 1.5, {EN}}}'], "1: the id is 1.5; it must be text or an integer"),
        ([f'{{"id": {{}}, {EN}}}'],
         "1: the id is an object; it must be text or an integer (Indonesian is written 'ind')"),
        ([f'{{"id": "1", {EN}, "id": {{}}}}'], "1: the key 'id' occurs twice; write Indonesian as 'ind'"),
        ([f'{{"id": "1", {EN}, {EN}}}'], "1: the key 'en' occurs twice; keep one of them"),
        (['{"id": "1"}'], '1: no language; add one such as "sw": {"instruction": "…"}'),
        ([f'{{"id": "1", "task": 3, {EN}}}'], "1: the task is 3; it must be a name such as 'instruction'"),
        (['{"id": "1", "swa_Latn2": {"instruction": "Je"}}'],
         "1: 'swa_Latn2' is not a known language code; did you mean swh_Latn (Swahili)?"),
        (['{"id": "1", "en": "Hi"}'], "1: en is a text; it must be an object with an instruction"),
        (['{"id": "1", "en": {"instruction": "Hi", "respnse": ""}}'],
         "1: 'respnse' is not a key; did you mean response?"),
        (['{"id": "1", "en": {"instruction": " "}}'],
         "1: the instruction in en is empty; write one or leave en out"),
        (['{"id": "1", "en": {"response": "Ho"}}'], "1: no instruction in en; add one or leave en out"),
        (['{"id": "1", "en": {"instruction": ["Hi"]}}'],
         "1: the instruction in en is a list; it must be text"),
        (['{"id": "1", "en": {"instruction": "\\ud800"}}'],
         "1: the instruction in en contains half of a surrogate pair; write the whole character"),
        (['{"id": "1", "sw": {"instruction": "a"}, "swh": {"instruction": "b"}}'],
         "1: id '1' has sw twice; give each row its own id"),
        ([ROW, ROW], "2: id '1' has en twice; give each row its own id"),
        ([ROW, '{"id": "1", "task": "qa", "language": "sw", "instruction": "Je"}'],
         "2: id '1' has task 'qa' here and 'instruction' in line 1; an id has one task"),
        ([ROW, WIDE], "2: this row has all languages of an item and the first row one language; "
         "use one form per file"),
        ([WIDE, ROW], "2: this row has one language and the first row all languages of an item; "
         "use one form per file"),
        (['{"id": "1", "instruction": "Hi"}'], '1: no language; add one such as "language": "sw"'),
        (['{"id": "1", "language": 7, "instruction": "Hi"}'],
         "1: the language is 7; it must be a code such as sw"),
        (['{"id": "1", "langage": "en", "instruction": "Hi"}'],
         "1: 'langage' is not a key; did you mean language?"),
    ],
)  # fmt: skip
def test_parallel_refuses_malformed_rows(tmp_path: Path, lines: list[str], says: str) -> None:
    """The message names the file, the line, the error and the fix."""
    path = put(tmp_path / "a.jsonl", *lines)
    assert f"{path}:{says}" == refusal(parallel_jsonl.read, path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, ": there is no such file; did you mean train.jsonl?"),
        (
            b'{"id": "1", "language": "sw", "instruction": "Hi"}\n\xff\n',
            ":2: the text is not UTF-8; convert the file to UTF-8",
        ),
        (b"\x1f\x8bx", ": the gzip data is damaged; download or compress the file again"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, data: bytes | None, says: str) -> None:
    """A missing file, another encoding and damaged gzip data: each message says how to fix it."""
    put(tmp_path / "train.jsonl")
    path = tmp_path / "trian.jsonl"
    if data is not None:
        path.write_bytes(data)
    assert f"{path}{says}" == refusal(parallel_jsonl.read, path)


def chat(*messages: tuple[str, object], **more: object) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in messages], **more})


def test_chat_reads_single_turns(tmp_path: Path) -> None:
    """System text is put before the instruction, and the line number serves as the ID."""
    path = put(
        tmp_path / "a.jsonl",
        chat(("user", "Hi"), ("assistant", "Ho")),
        chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), source="x"),
        chat(("user", "Hujambo"), id="x", language="swa"),
    )
    assert chat_jsonl.read(path, "eng_Latn") == [
        ParallelExample("1", "instruction", {"en": Turn("Hi", "Ho")}),
        ParallelExample("2", "instruction", {"en": Turn("Be brief.\n\nHi", "Ho")}),
        ParallelExample("x", "instruction", {"sw": Turn("Hujambo")}),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (chat(("assistant", "b"), ("user", "a")),
         "the roles are assistant, user; they must be user and assistant, after at most one system"),
        (chat(("usr", "a")), "'usr' is not a role; did you mean user?"),
        (chat(("human", "a")), "'human' is not a role; available: system, user, assistant"),
        (chat(("user", [])), "the user's content is a list; it must be text"),
        (chat(("system", "x"), ("user", "")), "the instruction in en is empty; write one or leave en out"),
        (chat(), "'messages' must be a list of a user message and its answer"),
        ('{"message": []}', "no key 'messages'; did you mean message?"),
        ('{"messages": [{"role": "user"}]}', "a message lacks its role or content; it must have both"),
    ],
)  # fmt: skip
def test_chat_refuses_malformed_rows(tmp_path: Path, line: str, says: str) -> None:
    """Misplaced or unknown roles and invalid content are refused, with the line number."""
    path = put(tmp_path / "a.jsonl", line)
    assert f"{path}:1: {says}" == refusal(chat_jsonl.read, path)


COLUMNS = {"id": "uid", "language": "locale", "instruction": "{premise} {hypothesis}", "response": "label"}
RECORDS = [
    {"uid": "1", "locale": "en", "premise": "A", "hypothesis": "B", "label": 0},
    {"uid": "1", "locale": "swh", "premise": "C", "hypothesis": "D", "label": None},
]
JOINED = [ParallelExample("1", "instruction", {"en": Turn("A B", "0"), "sw": Turn("C D")})]


def save(path: Path, kind: str) -> Path:
    from datasets import Dataset, DatasetDict

    if kind == "saved":
        Dataset.from_list(RECORDS).save_to_disk(str(path))
    elif kind == "splits":
        DatasetDict({"dev": Dataset.from_list(RECORDS)}).save_to_disk(str(path))
    elif kind in ("parquet", "shards"):
        path = path if kind == "parquet" else path / "dev-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        return path if kind == "parquet" else path.parent
    elif kind == "json":
        path.write_text(json.dumps(RECORDS))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in RECORDS))
    else:
        rows = [RECORDS[0], *(row.values() for row in RECORDS)]
        sep = "," if kind == "csv" else "\t"
        cells = (["" if cell is None else str(cell) for cell in row] for row in rows)
        path.write_text("\n".join(sep.join(row) for row in cells))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "shards", "saved", "splits"])
def test_tables_of_every_kind_read_the_same(tmp_path: Path, kind: str) -> None:
    """Files and folders of each kind give the same examples: numbers as text, empty cells as absent."""
    path = save(tmp_path / f"t.{kind}", kind)
    before = sorted(tmp_path.rglob("*"))
    assert table.read(path, COLUMNS) == JOINED
    assert before == sorted(tmp_path.rglob("*"))


def test_table_reads_an_arrow_file(tmp_path: Path) -> None:
    """The Arrow file of a saved data set can be read on its own."""
    save(tmp_path / "d", "saved")
    assert table.read(tmp_path / "d" / "data-00000-of-00001.arrow", COLUMNS) == JOINED


def test_table_reads_all_languages_of_a_row(tmp_path: Path) -> None:
    """Columns for languages and nested columns are read; a language without text is left out."""
    path = put(
        tmp_path / "t.jsonl",
        '{"t": {"en": "Hi", "sw": "Je"}, "a": 1}',
        '{"t": {"en": "Bye", "sw": ""}, "a": 2}',
    )
    columns = {"instruction": "t.en", "response": "a", "sw.instruction": "t.sw", "task": "a"}
    assert table.read(path, columns) == [
        ParallelExample("1", "1", {"en": Turn("Hi", "1"), "sw": Turn("Je")}),
        ParallelExample("2", "2", {"en": Turn("Bye", "2")}),
    ]


def test_table_reads_quoted_csv_and_plain_tsv(tmp_path: Path) -> None:
    """A quoted .csv field may contain commas and line breaks; quotation marks in .tsv are text."""
    columns = {"instruction": "q", "response": "a"}
    quoted = put(tmp_path / "t.csv", "q,a", '"one, ', '""two""",x')
    plain = put(tmp_path / "t.tsv", "q\ta", '"one\tx')
    assert [ParallelExample("1", "instruction", {"en": Turn('one, \n"two"', "x")})] == table.read(
        quoted, columns
    )
    assert [ParallelExample("1", "instruction", {"en": Turn('"one', "x")})] == table.read(plain, columns)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"instruction": "questn"}, ": the table has no column 'questn'; did you mean question?"),
        ({"instruction": "{question} {contxt}"}, ": the table has no column 'contxt'; did you mean context?"),
        ({"instruction": "{question"}, ": the template '{question' is malformed (expected '}' before end of "
         "string); write each column as {name}"),
        ({"instrction": "question"}, ": 'instrction' is not a field; did you mean instruction?"),
        ({"sw.answer": "question"}, ": 'sw.answer' is not a field; available: instruction, response"),
        ({"swx.instruction": "question"}, ": 'swx.instruction' names no language"),
        ({"response": "context"}, ": the columns name no 'instruction'; add it"),
        ({"sw.response": "context"}, ": the columns name no 'sw.instruction'; add it"),
        ({"id": "context"}, ": the columns name no 'instruction'; add it"),
        ({"instruction": "question", "language": "context"},
         ": the columns name 'language' but no 'id'; add it, as it joins the languages"),
        ({"sw.instruction": "question", "language": "context"},
         ": the columns name both 'language' and fields such as sw.instruction; keep one kind"),
        ({"instruction": "question", "en.instruction": "context"},
         ": the columns name a language twice; keep one of its codes"),
        ({"instruction": "question", "id": "context"}, ":3: no id; give each item text or an integer"),
    ],
)  # fmt: skip
def test_table_refuses_invalid_columns_and_rows(tmp_path: Path, columns: dict[str, str], says: str) -> None:
    """Each invalid column mapping and each missing cell is refused in one line."""
    path = put(tmp_path / "t.csv", "question,context", "q,c", "r,")
    if "names no language" in says:
        assert refusal(table.read, path, columns).startswith(f"{path}: 'swx' is not a known language code; ")
    else:
        assert f"{path}{says}" == refusal(table.read, path, columns)


@pytest.mark.parametrize(
    ("name", "lines", "says"),
    [
        ("t.csv", ["q,a", "x"], ":2: 1 fields, but the header has 2; each row must have as many"),
        (
            "t.csv",
            ["q", '"x'],
            ":2: not CSV (unexpected end of data); quote each field that contains a quotation mark",
        ),
        ("t.csv", ["q,a,q", "x,y,z"], ":1: the header names the column 'q' twice; name each once"),
        ("t.tsv", ["q\ta\ta", "x\ty\tz"], ":1: the header names the column 'a' twice; name each once"),
        ("t.jsonl", ['{"q": [1]}'], ":1: the column 'q' has a list; only text and numbers can be read"),
        (
            "t.json",
            ["{", '  "q": "x"', "}"],
            ": the file is one object over several lines; it must be a list of objects, or have one object "
            "per line",
        ),
        (
            "t.csv",
            ["q,a\rx,y\rz,w"],
            ":1: a line ends in CR alone; save the file with LF or CRLF, or quote fields that contain a CR",
        ),
        ("t.json", ["[1]"], ": item 1 of the list is a number; it must be an object"),
        (
            "t.xlsx",
            [],
            ": 't.xlsx' is not a supported file type; available: parquet, csv, tsv, json, jsonl, arrow",
        ),
        ("t.arrow", ["x"], ": the table cannot be read"),
        ("t.parquet", ["x"], ": the table cannot be read"),
    ],
)
def test_table_refuses_malformed_files(tmp_path: Path, name: str, lines: list[str], says: str) -> None:
    """A row of another length, an unreadable file and an unknown file type are refused."""
    path = put(tmp_path / name, *lines)
    assert refusal(table.read, path, {"instruction": "q"}).startswith(f"{path}{says}")


def test_rows_without_an_instruction_are_left_out(tmp_path: Path) -> None:
    """In chats, tables and parallel files; the other rows are read."""
    told: list[str] = []
    chats = put(tmp_path / "a.jsonl", chat(("user", " ")), chat(("user", "Hi"), ("assistant", "Ho")))
    cells = put(tmp_path / "t.csv", "en,sw", "Hi,", ",", "Bye,Kwa heri")
    wide = put(
        tmp_path / "w.jsonl",
        '{"id": 1, "en": {"instruction": "Hi"}, "sw": {"instruction": ""}}',
        '{"id": 2, "en": {"response": "Ho"}, "sw": {"instruction": "Je"}}',
    )
    left: list = []
    assert [e.turns for e in chat_jsonl.read(chats, tell=told.append, each=left.append)] == [
        {"en": Turn("Hi", "Ho")}
    ]
    columns = {"en.instruction": "en", "sw.instruction": "sw"}
    assert [e.turns for e in table.read(cells, columns, tell=told.append)] == [
        {"en": Turn("Hi")}, {"en": Turn("Bye"), "sw": Turn("Kwa heri")}
    ]  # fmt: skip
    assert [e.turns for e in parallel_jsonl.read(wide, tell=told.append)] == [
        {"en": Turn("Hi")}, {"sw": Turn("Je")}
    ]  # fmt: skip
    assert str(left[0].error) == f"{chats}:1: the instruction in en is empty; write one or leave en out"
    assert told == [
        f"{chats}: 2 rows, skipped: 1 without an instruction",
        f"{cells}: 4 rows, skipped: 1 without an instruction",
        f"{wide}: 4 rows, skipped: 2 without an instruction",
    ]


@pytest.mark.parametrize("above", [(), ("", " ")])
def test_csv_may_be_separated_by_semicolons(above: tuple[str, ...], tmp_path: Path) -> None:
    """As Excel saves it where a comma is the decimal mark; lines above the header may be empty."""
    path = put(tmp_path / "t.csv", *above, "q;a", "one, two;x")
    assert table.read(path, {"instruction": "q", "response": "a"})[0].turns["en"] == Turn("one, two", "x")


def test_table_reads_the_train_split_by_default(tmp_path: Path) -> None:
    """The choice is reported; another split can be named, and a misspelt one gets a suggestion."""
    put(tmp_path / "train.csv", "q", "x")
    put(tmp_path / "test.csv", "q", "y")
    columns = {"instruction": "q"}
    told: list[str] = []
    assert table.read(tmp_path, columns, tell=told.append)[0].turns["en"].instruction == "x"
    assert told == [f"{tmp_path}: reading train of the splits train, test; set data.split to read another"]
    assert f"{tmp_path}: there is no split 'trian'; did you mean train?" == refusal(
        table.read, tmp_path, columns, split="trian"
    )
    assert table.read(tmp_path, columns, split="test")[0].turns["en"].instruction == "y"


@pytest.mark.parametrize(
    "names",
    [
        ("flores101_dataset/dev/eng.dev", "flores101_dataset/dev/swh.dev"),
        ("flores200_dataset/dev/eng_Latn.dev", "flores200_dataset/dev/swh_Latn.dev"),
    ],
)
def test_flores_reads_both_releases(tmp_path: Path, names: tuple[str, str]) -> None:
    """The folders of FLORES-101 and FLORES-200 give the same sentences under our codes."""
    put(tmp_path / names[0], "One.", "Two\u2028.")
    put(tmp_path / names[1], "Moja.", "Mbili.")
    read = flores.read(tmp_path, "dev", ["en", "swh"])
    assert read == {"en": ("One.", "Two\u2028."), "sw": ("Moja.", "Mbili.")}


def test_flores_refuses_files_that_are_not_aligned(tmp_path: Path) -> None:
    """A missing file, an empty line and another number of lines: each message names the file."""
    folder = tmp_path / "flores101_dataset" / "dev"
    put(folder / "eng.dev", "One.", "Two.")
    put(folder / "swh.dev", "Moja.")
    put(folder / "urd.dev", "ایک۔", " ")
    for code, says in {
        "th": "tha.dev: no such file, so FLORES dev has no th here; put it there or leave it out",
        "sw": "swh.dev: 1 lines, but 2 in eng.dev; the files of a split must be aligned",
        "ur": "urd.dev:2: the line is empty; line n must be the same sentence in every language",
    }.items():
        assert f"{folder}/{says}" == refusal(flores.read, tmp_path, "dev", ["en", code])


HEADER = "language\tgold_label\tparse\tsentence1\tsentence2\tpairID"
XNLI_ROWS = [XnliRow("7", "contradiction", {"en": 'A "b', "sw": "C"}, {"en": "B", "sw": "D"})]


def test_xnli_reads_columns_by_name_and_joins_by_pair(tmp_path: Path) -> None:
    """Extra columns, column order and quotation marks do not matter; pairID joins the languages."""
    put(
        tmp_path / "XNLI-1.0" / "xnli.dev.tsv",
        HEADER,
        "sw\tneutral\t-\tE\tF\t8",
        "sw\tcontradiction\t-\tC\tD\t7",
        'en\tcontradiction\t-\tA "b\tB\t7',
        "en\tneutral\t-\tG\tH\t8",
        "fr\tneutral\t-\tI\tJ\t9",
    )
    rows = xnli.read(tmp_path, "dev", ["en", "swh"])
    assert [*XNLI_ROWS, XnliRow("8", "neutral", {"en": "G", "sw": "E"}, {"en": "H", "sw": "F"})] == rows


def test_xnli_reads_the_files_of_xglue(tmp_path: Path) -> None:
    """Three columns without a header are joined by line; `contradictory` means contradiction."""
    put(tmp_path / "XNLI" / "en.dev", "A\tB\tcontradictory")
    (tmp_path / "XNLI" / "sw.dev.gz").write_bytes(gzip.compress(b"C\tD\tcontradiction\n"))
    assert [XnliRow("1", "contradiction", {"en": "A", "sw": "C"}, {"en": "B", "sw": "D"})] == xnli.read(
        tmp_path, "dev", ["en", "sw"]
    )


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["language\tgold_lable\tsentence1\tsentence2"],
         ":1: no column 'gold_label' in the header; did you mean gold_lable?"),
        ([HEADER, "en\tneutral"], ":2: 2 fields, but the header has 6; separate them with tabs"),
        ([HEADER, "en\tnutral\t-\tA\tB\t1"], ":2: 'nutral' is not a label; did you mean neutral?"),
        ([HEADER, "en\tneutral\t-\tA\t\t1"],
         ":2: a sentence is empty; both premise and hypothesis are required"),
        ([HEADER, "en\tneutral\t-\tA\tB\t1", "fr\tneutral\t-\tA\tB\t1"],
         ": no rows in sw; available: en, fr"),
        ([HEADER, "en\tneutral\t-\tA\tB\t1", "sw\tneutral\t-\tA\tB\t2"],
         ": pair 1 is in en but not in sw; both must have it"),
        ([HEADER, "en\tneutral\t-\tA\tB\t1", "sw\tentailment\t-\tA\tB\t1"],
         ":3: pair 1 is 'entailment' in sw but 'neutral' in en; translations share their label"),
    ],
)  # fmt: skip
def test_xnli_refuses_malformed_files(tmp_path: Path, lines: list[str], says: str) -> None:
    """Columns, labels and languages that do not match are refused in one line."""
    path = put(tmp_path / "XNLI-1.0" / "xnli.dev.tsv", *lines)
    assert f"{path}{says}" == refusal(xnli.read, tmp_path, "dev", ["en", "sw"])


def test_xnli_says_where_it_looked(tmp_path: Path) -> None:
    """If neither layout exists, the message names both files."""
    looked = "looked for XNLI-1.0/xnli.test.tsv and XNLI/en.test, plain or .gz"
    assert f"{tmp_path}: no XNLI test in en; {looked}" == refusal(xnli.read, tmp_path, "test", ["en"])


def said(id: str, annotated: str, partition: str = "dev", intent: str = "alarm_set", **more: object) -> str:
    row = {"id": id, "partition": partition, "scenario": "alarm", "intent": intent, "utt": "u" + id}
    return json.dumps({**row, "annot_utt": annotated, **more})


@pytest.mark.parametrize("folder", ["massive", "1.0/data"])
def test_massive_aligns_locales_by_id(tmp_path: Path, folder: str) -> None:
    """Rows of the partition are joined by ID, with each language's slots."""
    put(
        tmp_path / folder / "en-US.jsonl",
        said("1", "x", "train"),
        said("2", "wake me [time : five am] [date : now]"),
    )
    sw = said("2", "niamshe [time : saa]") + "\n" + said("1", "x", "train") + "\n"
    (tmp_path / folder / "sw-KE.jsonl.gz").write_bytes(gzip.compress(sw.encode()))
    slots = {"en": (("time", "five am"), ("date", "now")), "sw": (("time", "saa"),)}
    assert [MassiveRow("2", "alarm", "alarm_set", {"en": "u2", "sw": "u2"}, slots)] == massive.read(
        tmp_path, "dev", ["en", "sw"]
    )
    assert {"en", "sw"} == massive.available(tmp_path)


def test_massive_counts_dev_only_for_dev(tmp_path: Path) -> None:
    """A locale in the dev_only folder is available for dev and no other partition."""
    put(tmp_path / "massive" / "dev_only" / "id-ID.jsonl", said("1", "x"))
    assert {"id"} == massive.available(tmp_path, "dev")
    assert set() == massive.available(tmp_path)
    assert [row.id for row in massive.read(tmp_path, "dev", ["id"])] == ["1"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([said("1", "x [time : five")], ":1: a slot in annot_utt is malformed; it must read [name : value]"),
        ([said("1", "x"), said("1", "x")], ":2: id '1' occurs twice in dev; ids are unique"),
        ([said("1", "x", "train")], ": no rows of partition dev; use a file that has them"),
        ([said("2", "x")], ": id 1 is in en but not in sw; both must have it"),
        ([said("1", "x", intent="play")],
         ": id 1 is 'play' in sw but 'alarm_set' in en; translations share their intent"),
        (['{"id": "1", "partiton": "dev"}'], ":1: no text under the key 'partition'; did you mean partiton?"),
        ([said("1", "x", utt=3)], ":1: no text under the key 'utt'; it must be text"),
    ],
)  # fmt: skip
def test_massive_refuses_malformed_files(tmp_path: Path, lines: list[str], says: str) -> None:
    """Rows that are malformed or do not match the first language are refused in one line."""
    put(tmp_path / "massive" / "en-US.jsonl", said("1", "x"))
    path = put(tmp_path / "massive" / "sw-KE.jsonl", *lines)
    assert f"{path}{says}" == refusal(massive.read, tmp_path, "dev", ["en", "sw"])


@pytest.mark.parametrize(
    ("partition", "language", "says"),
    [
        ("dve", "en", "'dve' is not a partition; did you mean dev?"),
        ("dev", "bg", "MASSIVE has no Bulgarian (bg); leave it out"),
        ("test", "en", "no MASSIVE test in en; looked for massive/en-US.jsonl, 1.0/data/en-US.jsonl, "
         "1.1/data/en-US.jsonl, plain or .gz"),
    ],
)  # fmt: skip
def test_massive_says_what_is_missing(tmp_path: Path, partition: str, language: str, says: str) -> None:
    """Unknown partitions, languages outside MASSIVE and missing files have different messages."""
    assert f"{tmp_path}: {says}" == refusal(massive.read, tmp_path, partition, [language])


class TestRealData:
    """Tests on the real files of the data root."""

    pytestmark = needs_data

    def test_flores(self) -> None:
        """FLORES-101 dev has 997 sentences per language."""
        sentences = flores.read(DATA, "dev", ["en", "sw", "zh"])
        assert {code: len(lines) for code, lines in sentences.items()} == {"en": 997, "sw": 997, "zh": 997}

    def test_xnli(self) -> None:
        """XNLI dev has 2,490 pairs; the first is neutral."""
        rows = xnli.read(DATA, "dev", ["en", "sw"])
        assert (len(rows), rows[0].label) == (2490, "neutral")
        assert rows[0].premise["sw"] == "Naye akasema, Mama, niko nyumbani."

    def test_massive(self) -> None:
        """MASSIVE dev has 2,033 utterances; Indonesian is available for dev only."""
        assert len(massive.read(DATA, "dev", ["en", "sw", "id"])) == 2033
        assert "id" in massive.available(DATA, "dev") - massive.available(DATA)

    def test_table(self) -> None:
        """Alpaca's three keys are read with a template."""
        columns = {"instruction": "{instruction}\n\n{input}", "response": "output"}
        path = DATA / "instructions" / "alpaca_sample" / "alpaca_data_5k.jsonl.gz"
        assert len(table.read(path, columns)) == 4990


def test_an_empty_cell_of_a_table_counts_as_missing(tmp_path):
    """An empty language, response or task is read as if there were no such column."""
    path = tmp_path / "a.csv"
    path.write_text("id,language,prompt,completion\n1,,Hi.,Ho\n2,en,Bye.,\n", encoding="utf-8")
    assert [e.turns["en"].response for e in chat_jsonl.read(path)] == ["Ho", None]
    path.write_text("id,task,language,instruction,response\n1,,en,Hi.,\n", encoding="utf-8")
    (only,) = parallel_jsonl.read(path)
    assert (only.task, only.turns["en"].response) == ("instruction", None)
