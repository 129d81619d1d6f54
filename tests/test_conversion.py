"""Packaged models against transformers' own reading of their files; Gemma's ids against sentencepiece's."""

import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf import read_gguf_metadata

pytest.importorskip("gguf")

from isogloss import bases
from isogloss.data.demo.items import demo_items
from isogloss.languages import XGLUE_TWELVE
from isogloss.model.load import load_model, load_tokenizer

pytestmark = pytest.mark.slow
LANGUAGES = tuple(dict.fromkeys(("en", "de", "zh", *XGLUE_TWELVE)))
TRICKY = [
    "", " ", "a  b   c    d", "\n\n\t\t x \n", "<b>bold</b><i>", "e\u0301 é ﬁ ½", "👩‍👩‍👧‍👦 🇹🇿", "𐎠𐎡",
    "\u200f\u200dنَعَم", "x" * 300, "12345678901234567890", "don't  can’t", "▁under ▁▁ score",
    "<start_of_turn>user\nhi<end_of_turn>",
]  # fmt: skip


def texts() -> list[str]:
    """Instructions of the demo in fifteen languages, and what tokenizers stumble over."""
    items = demo_items("train", 60, LANGUAGES)
    return [*TRICKY, *(t.instruction for item in items for t in item.example.turns.values())]


@pytest.fixture(params=list(bases.PACKAGED), scope="module")
def both(request, tmp_path_factory):
    """A packaged model's name, and its GGUF file."""
    if reason := bases.unavailable(request.param):
        pytest.skip(reason)
    return request.param, bases._joined(request.param, tmp_path_factory.mktemp("file"))


def test_weights_are_transformers_own_to_the_bit(both: tuple[str, Path]):
    name, file = both
    own = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs, ours = own.state_dict(), load_model(name, torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_token_ids_are_transformers_own(both: tuple[str, Path]):
    name, file = both
    theirs, ours = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), load_tokenizer(name)
    asked = texts()
    assert len(asked) > 800
    assert [ours(text)["input_ids"] for text in asked] == [theirs(text)["input_ids"] for text in asked]


def test_gemmas_token_ids_are_sentencepieces(tmp_path: Path):
    """The file's vocabulary, in its order, as a sentencepiece model of its own."""
    sentencepiece = pytest.importorskip("sentencepiece")
    if reason := bases.unavailable("gemma-3-270m"):
        pytest.skip(reason)
    file = bases._joined("gemma-3-270m", tmp_path)
    about, _ = read_gguf_metadata(str(file), ["tokenizer.ggml.tokens"])
    tokens, types = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    pieces = []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        spelled, kind = token.replace(" ", "▁").encode(), UNKNOWN if number == 3 else kind
        pieces.append(field(1, field(1, spelled) + field(2, -float(number)) + field(3, kind)))
    ids = field(40, 3) + field(41, 2) + field(42, 1) + field(43, 0)  # unknown, begin, end, padding
    model = b"".join(pieces) + field(2, field(3, BPE) + field(35, 1) + ids)  # unknown letters as bytes
    model += field(3, field(1, b"identity") + field(3, 0) + field(4, 0))  # no blank before, none taken out
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load_tokenizer("gemma-3-270m")
    asked = [text for text in texts() if "<start_of_turn>" not in text]  # sentencepiece reads it as letters
    assert [ours(t, add_special_tokens=False)["input_ids"] for t in asked] == reference.encode(asked)


BPE = UNKNOWN = 2
"""In sentencepiece's model file: the kind of model, and of a piece."""


def field(number: int, value: bytes | float | int) -> bytes:
    """A field of a protocol buffer, which that file is."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])
