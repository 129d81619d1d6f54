"""Packaged models against transformers' own reading of their files; Gemma's ids against sentencepiece's."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")

from isogloss import bases
from isogloss.demo.items import demo_items
from isogloss.languages import XGLUE_TWELVE
from isogloss.model import load_model, load_tokenizer

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
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    if reason := bases.unavailable("gemma-3-270m"):
        pytest.skip(reason)
    reader = pytest.importorskip("gguf").GGUFReader(bases._joined("gemma-3-270m", tmp_path))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    model = pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = pb2.TrainerSpec.BPE, True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        model.pieces.add(piece=token.replace(" ", "▁"), score=-number, type=kind)
    model.pieces[3].type = pb2.ModelProto.SentencePiece.UNKNOWN
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    ours = load_tokenizer("gemma-3-270m")
    asked = [text for text in texts() if "<start_of_turn>" not in text]  # sentencepiece reads it as letters
    assert [ours(t, add_special_tokens=False)["input_ids"] for t in asked] == reference.encode(asked)
