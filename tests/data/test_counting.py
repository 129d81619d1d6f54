"""Tokenizers of fixed size: the same IDs, the size counted once, and saved as their original class."""

import pytest
from transformers import AutoTokenizer

from isogloss.data import counting
from isogloss.data.chat import encode
from isogloss.data.counting import of_fixed_size, unchanging
from isogloss.model.load import load_tokenizer

TEXTS = ["Swali lako", "Ваш вопрос", "<|im_end|> hi", "Swali lako"]


@pytest.mark.parametrize("made", [of_fixed_size, unchanging])
def test_an_unchanging_tokenizer_encodes_as_before_and_counts_its_size_once(made, monkeypatch):
    tokenizer, counted = load_tokenizer("demo"), []
    expected = [encode(tokenizer, text, "Ndiyo") for text in TEXTS]
    size, kind = len(tokenizer), type(tokenizer)
    count = kind.__len__
    monkeypatch.setattr(kind, "__len__", lambda self: (counted.append(1), count(self))[1])
    fixed = made(tokenizer)
    assert [encode(fixed, text, "Ndiyo") for text in TEXTS] == expected
    assert len(fixed) == size
    assert counted == [1]


@pytest.mark.parametrize("made", [of_fixed_size, unchanging])
def test_an_unchanging_tokenizer_is_saved_as_its_original_class(made, tmp_path):
    tokenizer = load_tokenizer("demo")
    made(tokenizer).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_encodings_are_cached_until_they_are_too_many(monkeypatch):
    """The cache holds plain numbers, no encodings; with room for one text, each forgets the one before."""
    tokenizer, asked = load_tokenizer("demo"), []
    kind = type(tokenizer)
    call = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, text, **more: (asked.append(text), call(self, text, **more))[1]
    )
    for most, expected in ((1 << 26, ["a b", "c d"]), (1, ["a b", "c d", "a b", "c d"])):
        monkeypatch.setattr(counting, "MOST_BYTES", most)
        asked.clear()
        fixed = unchanging(tokenizer)
        found = [fixed(text, return_offsets_mapping=True) for text in ("a b", "c d", "a b", "c d")]
        assert asked == expected
        assert found[2].encodings is None and found[2]["input_ids"] == found[0]["input_ids"]
        assert [tuple(one) for one in found[2]["offset_mapping"]] == call(
            tokenizer, "a b", return_offsets_mapping=True
        )["offset_mapping"]
