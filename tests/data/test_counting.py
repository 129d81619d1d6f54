"""Tokenizers of fixed size: the same IDs, the size counted once, and saved as their original class."""

import pytest
from transformers import AutoTokenizer

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
