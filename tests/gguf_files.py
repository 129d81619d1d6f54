"""Write a tiny Llama with known weights as a GGUF file."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import pre_tokenizers

WIDTH, INNER, HEADS = 32, 64, 2
TOKENS = (
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    "th",
    "<|endoftext|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
)
CONTROL = 3
"""GGUF's token type of control tokens; ordinary tokens have type 1."""


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def embedding() -> np.ndarray:
    """Return the embedding as the file stores it: 8-bit values in blocks of 32 with a float16 scale."""
    return quants.quantize(numbers(len(TOKENS), WIDTH, seed=1), GGMLQuantizationType.Q8_0)


def write_gguf(
    path: Path, *, leave_out: str = "", template: str = "", scaling: str = "", factors: bool = False
) -> Path:
    """Write a one-layer model with query and key rows interleaved, as llama.cpp's converter does.

    Args:
        scaling: The value of `llama.rope.scaling.type`, if any.
        factors: Whether to add a tensor of rope factors, as in Llama 3.1's files.
    """
    made = GGUFWriter(path, "llama")
    made.add_name("tiny")
    made.add_license("mit")
    made.add_context_length(256)
    made.add_embedding_length(WIDTH)
    made.add_block_count(1)
    made.add_feed_forward_length(INNER)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_layer_norm_rms_eps(1e-6)
    made.add_rope_freq_base(10_000.0)
    made.add_rope_dimension_count(WIDTH // HEADS)
    if scaling:
        made.add_string("llama.rope.scaling.type", scaling)
    made.add_vocab_size(len(TOKENS))
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    made.add_token_list(TOKENS)
    made.add_token_types([CONTROL if token.startswith("<|") else 1 for token in TOKENS])
    made.add_token_merges(["t h"])
    made.add_eos_token_id(TOKENS.index("<|end|>"))
    made.add_add_bos_token(False)
    if template:
        made.add_chat_template(template)
    tensors = {
        "token_embd.weight": embedding(),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_q.weight": interleaved(numbers(WIDTH, WIDTH, seed=2)),
        "blk.0.attn_k.weight": interleaved(numbers(WIDTH, WIDTH, seed=3)),
        "blk.0.attn_v.weight": numbers(WIDTH, WIDTH, seed=4),
        "blk.0.attn_output.weight": numbers(WIDTH, WIDTH, seed=5),
        "blk.0.ffn_gate.weight": numbers(INNER, WIDTH, seed=6),
        "blk.0.ffn_up.weight": numbers(INNER, WIDTH, seed=7),
        "blk.0.ffn_down.weight": numbers(WIDTH, INNER, seed=8),
    }
    if factors:
        tensors["rope_freqs.weight"] = np.ones(WIDTH // HEADS // 2, np.float32)
    for name, tensor in tensors.items():
        if name != leave_out:
            eight = tensor.dtype == np.uint8
            made.add_tensor(name, tensor, raw_dtype=GGMLQuantizationType.Q8_0 if eight else None)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def interleaved(weight: np.ndarray) -> np.ndarray:
    """Interleave the halves of each head's rows: row i is followed by row i + half."""
    heads = weight.reshape(HEADS, 2, -1, weight.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weight.shape)
