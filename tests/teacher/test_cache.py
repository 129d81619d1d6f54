"""The cache: rows are found by content, damage is detected, and processes do not interfere."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from isogloss.teacher.cache import Cache, row_key, teacher_of

ABOUT = {"weights": "w", "tokenizer": "t"}


def rows(*numbers):
    return {row_key([n], [n]): torch.arange(n + 1, dtype=torch.int32)[:, None] + n for n in numbers}


def part_of(folder, **more):
    return Cache(folder, ABOUT).part(signal="hidden", **more)


def shards(folder):
    return sorted(folder.glob("*/*.safetensors"))


def assert_found(part, *numbers):
    wanted = rows(*numbers)
    found = part.read(wanted)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_written_rows_are_found_in_any_shard(tmp_path):
    """Rows of different lengths in two files, one of them a single token long."""
    part = part_of(tmp_path)
    written = part.write(rows(0, 3, 5)) + part.write(rows(1, 2))
    assert written == sum(shard.stat().st_size for shard in shards(tmp_path))
    assert_found(part_of(tmp_path), 0, 1, 2, 3, 5)
    assert part.read([row_key([9], [9])]) == {}
    assert part.write({}) == 0 and len(shards(tmp_path)) == 2


def test_keys_depend_on_where_the_prompt_ends():
    """The same IDs in another order, or split elsewhere, have other keys."""
    keys = [row_key([1, 2], [3]), row_key([1], [2, 3]), row_key([2, 1], [3]), row_key([1, 2, 3])]
    assert len(set(keys)) == 4
    assert keys[0] == row_key((1, 2), (3,)) and len(keys[0]) == 32


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "v"},
        {"tokenizer": "u"},
        {"signal": "top_k"},
        {"k": 32},
        {"dtype": "bfloat16"},
        {"version": 2},
    ],
)
def test_signals_are_kept_apart_by_what_they_depend_on(tmp_path, other):
    """Another teacher, kind or version finds nothing for the same IDs."""
    part_of(tmp_path).write(rows(1))
    changed = Cache(tmp_path, ABOUT | other).part(signal=other.get("signal", "hidden"))
    assert changed.read(rows(1)) == {}


def spoil_byte(shard):
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)


def spoil_header(shard):
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)


def cut(shard):
    shard.write_bytes(shard.read_bytes()[:-10])


def empty(shard):
    shard.write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_byte, spoil_header, cut, empty])
def test_a_damaged_shard_is_removed_and_its_rows_are_not_used(tmp_path, spoil):
    """One flipped bit is enough; other shards stay usable, and rows that are written again are found."""
    part = part_of(tmp_path)
    part.write(rows(1, 2))
    (good,) = shards(tmp_path)
    part.write(rows(3))
    (bad,) = set(shards(tmp_path)) - {good}
    spoil(bad)
    assert part.read(rows(1, 2, 3)).keys() == rows(1, 2).keys()
    assert shards(tmp_path) == [good]
    part.write(rows(3))
    assert_found(part, 1, 2, 3)


def test_another_parts_shard_is_not_used(tmp_path):
    """It is intact, but was copied from a teacher with other weights."""
    stale = Cache(tmp_path, ABOUT | {"weights": "v"}).part(signal="hidden")
    stale.write(rows(1))
    (shard,) = shards(tmp_path)
    part = part_of(tmp_path)
    part.write(rows(2))
    placed = part.folder / shard.name
    shutil.copy(shard, placed)
    assert part.read(rows(1, 2)).keys() == rows(2).keys()
    assert not placed.exists() and shard.exists()


def test_a_file_that_is_no_shard_is_removed_though_its_name_is_its_hash(tmp_path):
    part = part_of(tmp_path)
    part.write(rows(1))
    text = b"no shard"
    (part.folder / f"{hashlib.sha256(text).hexdigest()}.safetensors").write_bytes(text)
    assert_found(part, 1)
    assert part.read(rows(2)) == {} and len(shards(tmp_path)) == 1


def test_the_manifest_describes_a_part(tmp_path):
    """It is written again if it was changed."""
    part = part_of(tmp_path, layer=3)
    part.write(rows(1))
    manifest = part.folder / "manifest.json"
    assert json.loads(manifest.read_text()) == ABOUT | {"signal": "hidden", "layer": 3}
    manifest.write_text("{}")
    part.write(rows(2))
    assert json.loads(manifest.read_text()) == ABOUT | {"signal": "hidden", "layer": 3}


def test_concurrent_writers_and_readers_lose_nothing(tmp_path):
    """Eight threads write and read, some of them the same rows: all are intact, no temporary file is left."""

    def work(number):
        part = part_of(tmp_path)
        for turn in range(5):
            part.write(rows(number, 100 + turn))
            part.read(rows(*range(8), *range(100, 105)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert_found(part_of(tmp_path), *range(8), *range(100, 105))
    assert list(tmp_path.glob("*/.*")) == []


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    """An old one is removed; a recent one may still be in use."""
    part = part_of(tmp_path)
    part.write(rows(1))
    old, young = part.folder / ".1.old.part", part.folder / ".2.young.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    part.write(rows(2))
    assert not old.exists() and young.exists()
    assert_found(part, 1, 2)


def test_a_shard_that_vanishes_during_a_lookup_counts_as_missing(tmp_path, monkeypatch):
    """Another process may have found it damaged first."""
    part = part_of(tmp_path)
    part.write(rows(1))
    opened = part._open

    def vanish(shard):
        shard.unlink()
        return opened(shard)

    monkeypatch.setattr(part, "_open", vanish)
    assert part.read(rows(1)) == {}


def test_a_teacher_is_identified_by_its_weights_template_dtype_and_architecture(tiny, tokenizer):
    """The folder of the model does not matter."""
    model = tiny()
    same = teacher_of(model, tokenizer, "w")
    model.config._name_or_path = "elsewhere"
    assert teacher_of(model, tokenizer, "w") == same
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, chat_template=tokenizer.chat_template + " "
    )
    changed = [
        teacher_of(model, tokenizer, "v"),
        teacher_of(model, other, "w"),
        teacher_of(tiny(dtype=torch.bfloat16), tokenizer, "w"),
        teacher_of(tiny("llama"), tokenizer, "w"),
    ]
    assert all(one != same for one in changed)
    assert [name for name in same if changed[1][name] != same[name]] == ["template"]


def test_files_have_the_users_usual_mode(tmp_path):
    """Others may share the cache."""
    (tmp_path / "plain").write_text("")
    part = part_of(tmp_path)
    part.write(rows(1))
    (shard,) = shards(tmp_path)
    modes = {path.stat().st_mode for path in (tmp_path / "plain", part.folder / "manifest.json", shard)}
    assert len(modes) == 1
