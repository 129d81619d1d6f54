"""The adapters: one PEFT LoRA whose rank rows belong to the tree's nodes; each batch row uses one path.

PEFT injects, names and stores the adapter; only the two low-rank products are replaced. For each row of the
batch they use only the rank rows on that row's path: Σ r(path) instead of Σ r(tree), so the cost of a step
does not grow with the number of languages. With gradients enabled, these rows are gathered for all adapters
at once when the path is set. Without, plain linear layers apply all rows that the batch uses in one masked
product.

Adapters are off until a path is set. The path is state that the model reads during forward *and* during the
recomputation of gradient checkpointing: set it before the student's forward pass and keep it until the
backward pass is done.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from isogloss.adapters.routing import Routing, Shared
from isogloss.adapters.tree import Node, Tree
from isogloss.errors import ConfigError
from isogloss.model.decoder import causal_of, decoder_prefix, layers_of

ADAPTER = "default"
FEW = 64
"""On a CPU, setting up a half-precision product for this many tokens or fewer costs more than float32."""


class _Part(nn.Linear):
    """One of the two low-rank products, restricted to the rank rows on the batch's paths."""

    scaled = False
    """Whether the rows that pad a short path are zeroed."""
    routing: Routing
    read: Float[Tensor, "batch width features"] | None
    """Rows gathered for the current training batch."""

    def by_rank(self) -> Float[Tensor, "rank features"]:
        """Return the weight with the tree's rank rows as the first axis."""
        return self.weight

    def rows(self, dtype: torch.dtype) -> Float[Tensor, "batch width features"]:
        """Return the rank rows on each batch row's path."""
        if self.read is not None:
            return self.read.to(dtype)
        return self.routing.gather(self.by_rank(), dtype, scaled=self.scaled)


class _Down(_Part):
    """lora_A along each row's path: (batch, tokens, in) → (batch, tokens, width)."""

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "batch tokens width"]:
        if input.ndim != 3:
            raise ConfigError(
                f"distill.adapter.target_modules: a module with {self.in_features} input features receives "
                "tokens without a batch dimension, as routers and experts do; name linear layers outside them"
            )
        return input @ self.rows(input.dtype).transpose(1, 2)


class _Up(_Part):
    """lora_B along each row's path; the rows that pad a short path are zeroed."""

    scaled = True

    def by_rank(self) -> Float[Tensor, "rank features"]:
        return self.weight.t()

    def forward(self, input: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens features"]:
        return input @ self.rows(input.dtype)


class _Plain(LoraLinear):
    """PEFT's LoRA on a linear layer, with fast paths for training and for inference."""

    path: tuple[Tensor, Tensor, Tensor | None] | None
    """The rows of A and B that the batch uses, and a mask of which batch row uses which."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._disable_adapters or x.ndim != 3:
            return super().forward(x, *args, **kwargs)
        a: Any = self.lora_A[ADAPTER]
        b: Any = self.lora_B[ADAPTER]
        if torch.is_grad_enabled() and a.read is not None and a.read.dtype == x.dtype:
            base = self.base_layer(x, *args, **kwargs)
            return torch.baddbmm(base, a(x), b.read, alpha=self.scaling[ADAPTER])
        if self.path is None or torch.is_grad_enabled():
            return super().forward(x, *args, **kwargs)
        down, up, mask = self.path
        if x.shape[0] * x.shape[1] > FEW:
            down, up, mask = down.to(x.dtype), up.to(x.dtype), None if mask is None else mask.to(x.dtype)
        read = F.linear(x.to(down.dtype), down)
        if mask is not None:
            read *= mask
        return self.base_layer(x, *args, **kwargs).add_(read @ up)

    def follow(self, shared: Shared | None) -> None:
        """Store the rows of A and B that the batch uses; None clears them."""
        if shared is None:
            self.path = None
            return
        used, mask = shared
        a: Any = self.lora_A[ADAPTER].weight
        b: Any = self.lora_B[ADAPTER].weight
        base: Any = self.base_layer
        dtype = torch.float32 if a.device.type == "cpu" else base.weight.dtype
        up = b.index_select(1, used).t() * self.scaling[ADAPTER]
        self.path = a.index_select(0, used).to(dtype), up.to(dtype), None if mask is None else mask.to(dtype)


def lora_config(
    model: nn.Module,
    rank: int,
    *,
    targets: Sequence[str] | Literal["all-linear"],
    scaling: float,
    layers: int | None = None,
    **more: Any,
) -> LoraConfig:
    """Return PEFT's configuration of a LoRA on the target modules of the lowest decoder layers, or of all.

    Args:
        targets: Names of modules; "all-linear" for every linear layer of the text decoder.
        scaling: Factor on the adapter's output (PEFT's alpha / r).
        layers: Number of layers; None for all.
        more: Further fields of `LoraConfig`.
    """
    if layers is not None:
        blocks = layers_of(model)
        name = next(name for name, module in model.named_modules() if module is blocks)
        # Name the list explicitly, or PEFT could take an expert's index inside a layer for the layer index.
        more |= {"layers_to_transform": list(range(layers)), "layers_pattern": name.rpartition(".")[2]}
    prefix, causal = decoder_prefix(model), causal_of(model)
    outside = {name: one for name, one in causal.named_modules() if not name.startswith(prefix)}
    if targets == "all-linear":
        head = causal.get_output_embeddings()
        met = any(isinstance(one, nn.Linear) and one is not head for one in outside.values())
    else:
        met = any(name.rpartition(".")[2] in targets for name in outside)
    if met:  # such as a vision tower, through which text does not pass, so adapters would get no gradient
        more |= {"exclude_modules": rf"(?!{re.escape(prefix)}).*"}
    return LoraConfig(
        r=rank,
        lora_alpha=rank * scaling,  # type: ignore[arg-type]  # PEFT accepts floats
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),  # GPT-2's kind of linear layer
        **more,
    )


class TreeLora:
    """A frozen model with a tree of low-rank adapters; off unless a path is set.

    Args:
        targets: Names of the modules that carry adapters, in PEFT's format.
        scaling: Factor on the adapter's output (PEFT's alpha / r).
        layers: Number of decoder layers, from the lowest, that carry adapters; None for all.

    Attributes:
        model: The reference model with adapters, which are active while a path is set.

    Raises:
        ConfigError: PEFT rejects a target, or would adapt a parameter outside a linear layer, such as a
            tensor of experts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tree: Tree,
        *,
        targets: Sequence[str],
        scaling: float,
        layers: int | None = None,
    ):
        self.tree = tree
        self.learning = {node.name for node in tree.nodes if node.rank}
        """Names of the nodes that training changes."""
        self.like = partial(lora_config, model, targets=targets, scaling=scaling, layers=layers)
        config = self.like(tree.rank)
        model.requires_grad_(False)
        try:
            self.model: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:  # such as experts that can only be adapted together
            raise ConfigError(f"distill.adapter.target_modules: {error}") from None
        self._refuse_parameters()
        self._layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        self.routing = Routing(tree)
        for layer in self.layers():
            for part, kind in ((layer.lora_A, _Down), (layer.lora_B, _Up)):
                linear = part[ADAPTER]
                linear.__class__ = kind
                object.__setattr__(linear, "routing", self.routing)  # state, not a submodule
            if type(layer) is LoraLinear:
                layer.__class__ = _Plain
            # The products run in the base model's dtype; PEFT would cast every input to float32.
            layer.cast_input_dtype_enabled = False
        self.off()

    def _refuse_parameters(self) -> None:
        # PEFT adds all rows to such a parameter before use: paths and the layer limit would have no effect.
        for name, module in self.model.named_modules():
            if isinstance(module, ParamWrapper):
                where = f"{name.removeprefix('base_model.model.')}.{module.parameter_name}"
                raise ConfigError(
                    "distill.adapter.target_modules: PEFT would add all languages' rows to the parameter "
                    f"{where}; name linear layers outside experts and routers"
                )

    def layers(self) -> Iterator[LoraLayer]:
        return iter(self._layers)

    def parts(self) -> Iterator[_Part]:
        for layer in self.layers():
            yield from (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])  # type: ignore[misc]

    def off(self) -> None:
        """Disable the adapters; the model is then bit-identical to the reference model."""
        self.routing.clear()
        self._forget()
        for layer in self.layers():
            layer._disable_adapters = True
            if isinstance(layer, _Plain):
                layer.follow(None)

    @contextmanager
    def on(self, languages: Sequence[str]) -> Iterator[PeftModel]:
        """Yield the student: row b of every forward pass inside uses the path of `languages[b]`."""
        self.set_path(languages)
        try:
            yield self.model
        finally:
            self.off()

    def set_path(self, languages: Sequence[str]) -> None:
        """Set each row's path until `off`, so that backward and recomputed layers use it too.

        Args:
            languages: For each row a language code, or the name of a node at which the path ends.
        """
        width = max(1, self.tree.path_rank())
        self.routing.set(languages, next(self.model.parameters()).device, width=width)
        self._forget()
        shared = None if torch.is_grad_enabled() else self.routing.shared()
        for layer in self.layers():
            layer._disable_adapters = False
            if isinstance(layer, _Plain):
                layer.follow(shared)
        # With gradient checkpointing each layer is recomputed separately, so each gathers its own rows.
        if torch.is_grad_enabled() and not any(
            getattr(layer, "gradient_checkpointing", False) for layer in layers_of(self.model)
        ):
            self._gather()

    def _forget(self) -> None:
        for part in self.parts():
            part.read = None

    def _gather(self) -> None:
        """Gather the rows of all adapters for a training batch, in one operation per shape."""
        dtype = causal_of(self.model).dtype
        for parts in self._alike:
            weights = [part.by_rank() for part in parts]
            gathered = self.routing.gather_all(weights, dtype, self._forget, scaled=parts[0].scaled)
            for part, read in zip(parts, gathered, strict=True):
                part.read = read

    @cached_property
    def _alike(self) -> list[list[_Part]]:
        """Products grouped by class, shape and device."""
        found: dict[tuple, list[_Part]] = defaultdict(list)
        for part in self.parts():
            found[type(part), part.weight.shape, part.weight.device].append(part)
        return list(found.values())

    def met(self) -> float:
        """Return the share of the tree's rank that a token uses: that of the longest path, or 0 if off."""
        return 0.0 if self.routing.rows is None else self.tree.path_rank() / max(1, self.tree.rank)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if "lora_" in name}

    def axis(self, name: str) -> int:
        """Return the axis of a parameter that indexes the tree's rows."""
        return 0 if "lora_A" in name else 1

    def rows_of(self, name: str, tensor: Tensor, rows: Iterable[int]) -> Tensor:
        """Copy some rows of a parameter, or of a tensor of its shape."""
        index = torch.tensor(list(rows), dtype=torch.long, device=tensor.device)
        return tensor.index_select(self.axis(name), index)

    def by_row(self, name: str, values: Float[Tensor, " rank"]) -> Tensor:
        """Reshape a vector with one value per row of the tree so that it multiplies a parameter."""
        return values[:, None] if self.axis(name) == 0 else values

    def node_parameters(self, node: Node) -> dict[str, Tensor]:
        """Return views of a node's rows."""
        return {
            name: p.detach().narrow(self.axis(name), node.start, node.rank)
            for name, p in self.parameters().items()
        }

    def learn_only(self, nodes: Iterable[Node]) -> None:
        """Zero the gradients of all other nodes from now on, so that their rows stay bit-identical."""
        mask, nodes = torch.zeros(self.tree.rank), list(nodes)
        self.learning = {node.name for node in nodes if node.rank}
        for node in nodes:
            mask[list(node.rows)] = 1.0
        for name, p in self.parameters().items():
            kept = self.by_row(name, mask).to(p.device)
            p.register_hook(lambda gradient, kept=kept: gradient * kept)

    def load_nodes(self, state: dict[str, Tensor], tree: Tree) -> None:
        """Copy the rows of every node whose name exists in both trees from another tree's adapters."""
        for node in tree.nodes:
            if own := self.tree.by_name.get(node.name):
                for name, rows in self.node_parameters(own).items():
                    rows.copy_(state[name].narrow(self.axis(name), node.start, node.rank))

    def state(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.parameters().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        own = self.parameters()
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in state.items()}:
            raise ValueError("these adapters belong to a model or tree with different shapes")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])

    def path_state(self, language: str) -> dict[str, Tensor]:
        """Return a standard PEFT state dict of rank Σ r(path)."""
        on = self.tree.rows(language)
        return {
            name.replace(f".{ADAPTER}", ""): self.rows_of(name, p.data, on)
            for name, p in self.parameters().items()
        }

    def export(self, language: str, folder: Path, base_model: str, max_rank: int | None = None) -> int:
        """Write a language's path as a PEFT LoRA for `PeftModel.from_pretrained`; return its rank.

        Args:
            max_rank: Truncate a path of higher rank to this rank.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state, rank = self.path_state(language), sum(node.rank for node in self.tree.path(language))
        if max_rank is not None and max_rank < rank:
            state, rank = nearest_of_rank(state, max_rank), max_rank
        config = self.like(rank, base_model_name_or_path=base_model, inference_mode=True)
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        return rank


def nearest_of_rank(state: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return the lower-rank LoRA whose products B·A are nearest in the Frobenius norm.

    Keeps the largest singular values of each product (Eckart & Young 1936, doi:10.1007/BF02288367), computed
    from the thin QR factors of B and Aᵀ. The scaling is unchanged.
    """
    smaller = {}
    for name in state:
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            out, inner = torch.linalg.qr(state[other].double())
            into, outer = torch.linalg.qr(state[name].double().T)
            left, values, right = torch.linalg.svd(inner @ outer.T)
            root = values[:rank].sqrt()
            smaller[name] = (root[:, None] * (right[:rank] @ into.T)).to(state[name].dtype).contiguous()
            smaller[other] = (out @ left[:, :rank] * root).to(state[other].dtype).contiguous()
    return smaller
