"""Fixtures for all tests: a byte tokenizer and tiny random models, built in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

PACKAGE = Path(__file__).parent.parent / "isogloss"
TENSORS = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if "from jaxtyping" in file.read_text("utf-8")
]
"""Modules with annotated tensor shapes: the tests check the shapes in every call of their functions."""
install_import_hook(TENSORS, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from isogloss.adapters.fit import linear_names
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import Tree, build_tree
from isogloss.config import load_config
from isogloss.inference import Aligned
from isogloss.pipeline import training
from isogloss.pipeline.folder import open_run

ANSWERING = (
    "languages.targets=[sw,ru,ur]", "distill.adapter.ranks={root: 2, family: 1, language: 2}",
    "distill.adapter.layers=3",
)  # fmt: skip
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
SIZES = {
    "vocab_size": 269,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
EXTRA = {
    "mixtral": {"num_local_experts": 3},
    "qwen2_moe": {
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "xglm": {"ffn_dim": 40},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 6,
        "linear_value_head_dim": 6,
    },
    "falcon_h1": {
        "mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 8, "lm_head_multiplier": 0.5,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer with one token per byte; IDs 0 to 4 are special, and ID 1 ends a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens={t.strip("<|>"): t for t in SPECIAL[2:]},
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    """Return a function that builds a random model of an architecture; equal seeds give equal weights."""

    def make(
        kind: str = "qwen3", *, dtype: torch.dtype = torch.float32, seed: int = 0, tie: bool = True
    ) -> PreTrainedModel:
        sizes = SIZES | EXTRA.get(kind, {})
        if kind in ("gpt2", "bloom", "xglm"):  # one key head per query head, and no setting for it
            sizes = {k: v for k, v in sizes.items() if k not in ("num_key_value_heads", "head_dim")}
        config = AutoConfig.for_model(kind, **sizes, tie_word_embeddings=tie)
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    return make


@pytest.fixture(scope="session")
def five() -> Tree:
    """A tree of five languages in three families; ranks 2 (root), 1 (family) and 2 (language)."""
    return build_tree(("ru", "bg", "es", "fr", "sw"), ranks={"root": 2, "family": 1, "language": 2})


@pytest.fixture(scope="session")
def student() -> Callable[..., TreeLora]:
    """Return a function that adds a tree of adapters to a model, with random B so that all paths differ."""

    def make(model: PreTrainedModel, tree: Tree, *, seed: int = 1, filled: bool = True) -> TreeLora:
        torch.manual_seed(seed)
        targets = sorted({name.rpartition(".")[2] for name in linear_names(model)})
        adapters = TreeLora(model, tree, targets=targets, scaling=2.0)
        if filled:
            for name, p in adapters.parameters().items():
                if "lora_B" in name:
                    torch.nn.init.normal_(p, std=0.1)
        return adapters

    return make


@pytest.fixture(scope="session")
def base(tokenizer, tiny, tmp_path_factory) -> Path:
    """A folder with a random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny("qwen3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def aligned(tokenizer, tiny, tmp_path_factory) -> Aligned:
    """A random model with random adapters, so that its languages differ."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    run = open_run(load_config(None, (*ANSWERING, f"run={folder}", "dtype=float32")))
    tiny("qwen3").save_pretrained(run.tuned)
    tokenizer.save_pretrained(run.tuned)
    adapters = run.student(run.reference_model(), trained=False)
    torch.manual_seed(1)
    state = {name: torch.randn_like(p) * 0.3 for name, p in adapters.state().items()}
    training.save_whole(state, run.trained)
    return Aligned(run)
