"""Data sets on the Hub without a network: cached ones are read, and other cases have clear messages."""

import json
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from isogloss.config import Config, TableFile, load_config
from isogloss.data.formats import chat_jsonl, layouts, parallel_jsonl, table
from isogloss.data.formats.records import read_records
from isogloss.data.sources import english_examples
from isogloss.errors import DataError

CHATS = [{"messages": [{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": f"say {n}"}]}
         for n in range(3)]  # fmt: skip


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Return a function that puts splits of rows into the library's cache, as if downloaded."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name, splits, config="default", features=None):
        owner, _, own = name.partition("/")
        folder = tmp_path / "made" / config / own
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
        builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "prepared"))
        there = cache / f"{owner}___{own}" / config / "0.0.0" / ("a" * 40)
        builder.download_and_prepare(str(there))
        info = json.loads((there / "dataset_info.json").read_text())
        (there / "dataset_info.json").write_text(json.dumps(info | {"config_name": config}))
        return f"hub:{name}"

    return put


def asked(examples):
    return [one.turns["en"].instruction for one in examples]


def test_chats_on_the_hub_are_read_by_split(cached):
    """The layout is detected as for a file; train is read by default, which is reported."""
    name = Path(cached("org/chats", {"train": CHATS, "test": CHATS[:1]}))
    told = []
    layout, found = layouts.read(name, tell=told.append)
    assert layout.name == "messages" and asked(found) == ["ask 0", "ask 1", "ask 2"]
    assert told == ["hub:org/chats: reading train of the splits train, test; set data.split to read another"]
    assert asked(chat_jsonl.read(name, split="test")) == ["ask 0"]
    assert [record[:3] for record in read_records(name, "test")] == [(name, 1, 1)]


def test_the_settings_can_name_a_data_set_on_the_hub(cached):
    """No local file is needed."""
    name = cached("org/chats", {"train": CHATS})
    settings = load_config(None, [f"data={{type: chat, path: '{name}', split: train}}"], places=True)
    assert asked(english_examples(settings, None)) == ["ask 0", "ask 1", "ask 2"]


@pytest.mark.parametrize(
    ("rows", "layout"),
    [
        ([{"instruction": "ask 0", "output": "say 0"}], "instruction and output (Alpaca, Dolly)"),
        ([{"prompt": "ask 0", "completion": "say 0"}], "prompt and completion"),
        (
            [{"conversations": [{"from": "human", "value": "ask 0"}, {"from": "gpt", "value": "say 0"}]}],
            "ShareGPT",
        ),
        (
            [{"id": "1", "task": "t", "en": {"instruction": "ask 0"}, "sw": {"instruction": "uliza 0"}}],
            "all languages in a row",
        ),
    ],
)  # fmt: skip
def test_every_layout_can_be_read_from_the_hub(cached, rows, layout):
    found, examples = layouts.read(Path(cached("org/set", {"train": rows})))
    assert found.name == layout and asked(examples) == ["ask 0"]


def test_a_class_label_is_read_as_its_name(cached):
    """The library stores it as a number; the second row has none."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    name = cached(
        "org/labels", {"train": [{"text": "a", "label": 1}, {"text": "b", "label": None}]}, features=features
    )
    source = TableFile(path=Path(name), columns={"instruction": "text", "response": "label"})
    found = table.read(source.path, source.columns)
    assert [one.turns["en"].response for one in found] == ["yes", None]
    assert asked(english_examples(Config(data=source), None)) == ["a"]


def test_a_configuration_follows_the_name(cached):
    cached("org/several", {"train": CHATS[:1]}, config="small")
    cached("org/several", {"train": CHATS}, config="large")
    assert asked(chat_jsonl.read(Path("hub:org/several/small"))) == ["ask 0"]
    with pytest.raises(
        DataError, match=r"hub:org/several: .*give its configuration as hub:OWNER/NAME/CONFIG"
    ):
        chat_jsonl.read(Path("hub:org/several"))


def test_unavailable_data_sets_are_refused_in_one_line(cached, monkeypatch):
    """Not cached, a missing split, gated, unknown, and an invalid name."""
    with pytest.raises(
        DataError, match=r"^hub:org/none: .*; connect once, or give a folder with a copy"
    ) as error:
        chat_jsonl.read(Path("hub:org/none"))
    assert "\n" not in str(error.value)
    name = Path(cached("org/chats", {"train": CHATS}))
    with pytest.raises(DataError, match=r"^hub:org/chats: there is no split 'tets'; available: train$"):
        chat_jsonl.read(name, split="tets")
    for said, way in (
        (
            "Dataset 'org/x' is a gated dataset on the Hub. You must be authenticated.",
            "request access on its page",
        ),
        (
            "Dataset 'org/x' doesn't exist on the Hub or cannot be accessed.",
            "correct the name; if it is private",
        ),
    ):

        def refuse(*given, said=said, **more):
            raise DatasetNotFoundError(said)

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(DataError, match=f"^hub:org/x: .*; {way}"):
            chat_jsonl.read(Path("hub:org/x"))
    with pytest.raises(
        DataError, match=r"^hub:squad: not a data set on the Hub; write hub:OWNER/NAME, followed"
    ):
        chat_jsonl.read(Path("hub:squad"))


def test_a_folder_of_parallel_files_is_read_by_split(tmp_path):
    for split in ("train", "test"):
        row = {"id": "1", "en": {"instruction": split}, "sw": {"instruction": "x"}}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    assert asked(parallel_jsonl.read(tmp_path, split="test")) == ["test"]
