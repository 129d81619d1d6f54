"""Check that the settings fit the model, from its configuration and before any weights are loaded."""

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import ROOT, Node, Tree
from isogloss.config import Adapter, Config
from isogloss.errors import ConfigError
from isogloss.model.decoder import decoder_prefix, last_hidden, layers_of, two_thirds
from isogloss.model.load import skeleton
from isogloss.model.shapes import ShapesOnly


def refuse_misfit(config: Config) -> None:
    """Check that the configured model has the layers and modules that the settings name.

    Raises:
        ConfigError: The model has fewer layers than a setting names, lacks a target module, or has one that
            `TreeLora` cannot adapt.
    """
    settings, model = config.distill.adapter, skeleton(config.model)
    count = len(layers_of(model))
    named = {
        "distill.similarity_layer": config.distill.similarity_layer,
        "evaluate.layer": config.evaluate.layer,
        "distill.adapter.layers": settings.layers,
    }
    for name, layer in named.items():
        if (layer or 0) > count:
            raise ConfigError(f"{name}: {config.model} has {count} decoder layers, not {layer}")
    linear = linear_names(model)
    if missing := [t for t in settings.target_modules if not any(f".{n}".endswith(f".{t}") for n in linear)]:
        there = dict.fromkeys(name.rpartition(".")[2] for name in linear)
        raise ConfigError(
            f"distill.adapter.target_modules: {config.model} has no {', '.join(missing)}; "
            f"it has {', '.join(there)}"
        )
    tree = Tree((Node(ROOT, "root", None, (ROOT,), 1, 0),))
    adapters = TreeLora(model.bfloat16(), tree, **lora_shape(model, settings))
    ids = torch.zeros(2, 3, dtype=torch.long, device="meta")
    # Raises if a module gets tokens without a batch dimension. Kernels without a meta version prove nothing.
    with suppress(RuntimeError), ShapesOnly(), adapters.on([ROOT, ROOT]):
        last_hidden(adapters.model, ids, torch.ones_like(ids))


def lora_shape(model: nn.Module, settings: Adapter) -> dict[str, Any]:
    """Return the target modules, scaling and layers as keyword arguments of `TreeLora` and `lora_config`."""
    layers = settings.layers or two_thirds(model)
    return {"targets": settings.target_modules, "scaling": settings.scaling, "layers": layers}


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the text decoder's linear modules, without the output head."""
    prefix, head = decoder_prefix(model), model.get_output_embeddings()  # type: ignore[operator]
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | Conv1D) and name.startswith(prefix) and m is not head
    ]
