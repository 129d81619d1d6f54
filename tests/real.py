"""Real tokenizers and chat templates, from the wheels of mistral-common and trl; nothing is downloaded."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

QWEN3_CONTROLS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Added tokens of Qwen 3 that are not special.
QWEN3_MARKS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip


def mistral_data() -> Path:
    return Path(pytest.importorskip("mistral_common").__file__).parent / "data"


def tekken() -> PreTrainedTokenizerBase:
    """Return Mistral's byte-level BPE of 131,072 tokens."""
    mistral = pytest.importorskip("transformers.integrations.mistral")
    return mistral.convert_tekken_tokenizer(str(mistral_data() / "tekken_240911.json"))


def qwen3_like() -> PreTrainedTokenizerBase:
    """Return Mistral's BPE with Qwen 3's control tokens and chat template; like Qwen 3, it has no BOS."""
    tokenizer = tekken()
    tokenizer.add_tokens(list(QWEN3_CONTROLS), special_tokens=True)
    tokenizer.add_tokens(list(QWEN3_MARKS))
    tokenizer.bos_token = None
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = trl_template("qwen3")
    return tokenizer


@cache
def trl_template(name: str) -> str:
    """Return a model's chat template as shipped by trl."""
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    return (folder / f"{name}.jinja").read_text("utf-8")


def trl_templates() -> list[str]:
    """Return the names of all templates in trl; none if it is not installed."""
    spec = find_spec("trl")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    return sorted(path.stem for path in folder.glob("chat_templates/*.jinja"))
