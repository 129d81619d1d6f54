"""Packaged models against transformers' reading of their files; Gemma's token IDs against sentencepiece."""

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
    """Return demo instructions in fifteen languages, and texts that tokenizers often get wrong."""
    items = demo_items("train", 60, LANGUAGES)
    return [*TRICKY, *(t.instruction for item in items for t in item.example.turns.values())]


@pytest.fixture(params=list(bases.PACKAGED), scope="module")
def both(request, tmp_path_factory):
    """A packaged model's name and its GGUF file."""
    if reason := bases.unavailable(request.param):
        pytest.skip(reason)
    return request.param, bases._joined(request.param, tmp_path_factory.mktemp("file"))


def test_weights_are_bit_identical_to_transformers(both: tuple[str, Path]):
    name, file = both
    own = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs, ours = own.state_dict(), load_model(name, torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_token_ids_equal_those_of_transformers(both: tuple[str, Path]):
    name, file = both
    theirs, ours = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), load_tokenizer(name)
    asked = texts()
    assert len(asked) > 800
    assert [ours(text)["input_ids"] for text in asked] == [theirs(text)["input_ids"] for text in asked]


def test_gemmas_token_ids_equal_those_of_sentencepiece(tmp_path: Path):
    """The reference is a sentencepiece model built from the file's vocabulary, in the same order."""
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
    ids = field(40, 3) + field(41, 2) + field(42, 1) + field(43, 0)  # unknown, BOS, EOS, padding
    model = b"".join(pieces) + field(2, field(3, BPE) + field(35, 1) + ids)  # byte fallback
    model += field(3, field(1, b"identity") + field(3, 0) + field(4, 0))  # no space added or removed
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load_tokenizer("gemma-3-270m")
    asked = [text for text in texts() if "<start_of_turn>" not in text]  # plain text for sentencepiece
    assert [ours(t, add_special_tokens=False)["input_ids"] for t in asked] == reference.encode(asked)


BPE = UNKNOWN = 2
"""Enum values in sentencepiece's model file: the model type BPE and the piece type UNKNOWN."""


def field(number: int, value: bytes | float | int) -> bytes:
    """Encode a field of a protocol buffer, the format of that file."""
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
