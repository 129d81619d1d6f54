"""The cache: content finds, damage is found, and nobody gets in another's way."""

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


def test_what_was_written_is_read_from_any_shard(tmp_path):
    """Rows of unequal length, one of them of a single token, in two files."""
    part = part_of(tmp_path)
    written = part.write(rows(0, 3, 5)) + part.write(rows(1, 2))
    assert written == sum(shard.stat().st_size for shard in shards(tmp_path))
    assert_found(part_of(tmp_path), 0, 1, 2, 3, 5)
    assert part.read([row_key([9], [9])]) == {}
    assert part.write({}) == 0 and len(shards(tmp_path)) == 2


def test_keys_tell_where_a_prompt_ends():
    """The same ids in another order, or parted elsewhere, are other rows."""
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
def test_what_signals_depend_on_keeps_them_apart(tmp_path, other):
    """Another teacher, kind or version finds nothing, though the ids are the same."""
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
    """One flipped bit is enough; the other shard's rows are there, and what is written again is found."""
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
    """Whole, but laid here by hand from a teacher of other weights."""
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
    """Nothing of another form is read as one."""
    part = part_of(tmp_path)
    part.write(rows(1))
    text = b"no shard"
    (part.folder / f"{hashlib.sha256(text).hexdigest()}.safetensors").write_bytes(text)
    assert_found(part, 1)
    assert part.read(rows(2)) == {} and len(shards(tmp_path)) == 1


def test_the_manifest_tells_people_what_a_part_is(tmp_path):
    """And is written again where it was changed."""
    part = part_of(tmp_path, layer=3)
    part.write(rows(1))
    manifest = part.folder / "manifest.json"
    assert json.loads(manifest.read_text()) == ABOUT | {"signal": "hidden", "layer": 3}
    manifest.write_text("{}")
    part.write(rows(2))
    assert json.loads(manifest.read_text()) == ABOUT | {"signal": "hidden", "layer": 3}


def test_writers_and_readers_side_by_side_lose_nothing(tmp_path):
    """Eight at once, with rows in common, reading too: every row is whole, and no half file is left."""

    def work(number):
        part = part_of(tmp_path)
        for turn in range(5):
            part.write(rows(number, 100 + turn))
            part.read(rows(*range(8), *range(100, 105)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert_found(part_of(tmp_path), *range(8), *range(100, 105))
    assert list(tmp_path.glob("*/.*")) == []


def test_half_files_of_killed_processes_are_tidied_up(tmp_path):
    """An old one goes, a young one may be somebody's work."""
    part = part_of(tmp_path)
    part.write(rows(1))
    old, young = part.folder / ".1.old.part", part.folder / ".2.young.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    part.write(rows(2))
    assert not old.exists() and young.exists()
    assert_found(part, 1, 2)


def test_a_shard_that_vanishes_while_it_is_looked_for_is_missing(tmp_path, monkeypatch):
    """Another process found it damaged first."""
    part = part_of(tmp_path)
    part.write(rows(1))
    opened = part._open

    def vanish(shard):
        shard.unlink()
        return opened(shard)

    monkeypatch.setattr(part, "_open", vanish)
    assert part.read(rows(1)) == {}


def test_a_teacher_is_its_weights_tokenizer_template_and_type(tiny, tokenizer):
    """Each changes who it is; where the model lies does not."""
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
