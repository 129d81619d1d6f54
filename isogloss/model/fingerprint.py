"""Hashes of a model's weights, and of the files that decide its answers."""

import hashlib
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from isogloss.files import content_hash
from isogloss.model.decoder import causal_of

READING = (
    *("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template"),
    *("spiece", "sentencepiece", "tekken", "source.spm", "target.spm"),
)
"""How the names of the files begin on which a prompt's token IDs depend."""
WEIGHTS = (".safetensors", "pytorch_model")
"""Parts of the names of weight files."""


def file_hashes(folder: Path) -> dict[str, str]:
    """Hash the files that decide a saved model's answers: the weights (`model`) and tokenizer (`template`).

    Cards and licences beside them change nothing.
    """
    files = {file for file in folder.iterdir() if file.is_file()}
    reading = {file for file in files if file.name.startswith(READING)}
    model = {f for f in files if any(w in f.name for w in WEIGHTS) or f.name.endswith("config.json")}
    return {"model": content_hash(model - reading), "template": content_hash(reading)}


def fingerprint(model: torch.nn.Module) -> str:
    """Hash every weight of the reference model, without adapters; all processes must call it if sharded."""
    digest = hashlib.sha256()
    for name, p in sorted(causal_of(model).named_parameters()):
        if "lora_" not in name:
            weight = p.detach()
            if isinstance(weight, DTensor):
                weight = weight.full_tensor()
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
