"""A hash of a model's weights."""

import hashlib

import torch
from torch.distributed.tensor import DTensor

from isogloss.model.decoder import causal_of


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
