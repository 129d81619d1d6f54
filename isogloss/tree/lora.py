"""The LoRA carrier: one PEFT adapter whose rows belong to the tree's nodes; a batch reads one path per row.

PEFT injects, names and stores the adapter; only the two small products are ours. They read, for
each row of the batch, just the rank rows on that row's path: Σ r(path) instead of Σ r(tree), so
the cost of a step does not grow with the number of languages. The path is state that the layers
read during forward *and* during the recomputation of gradient checkpointing: set it before the
student's forward and leave it until backward is done.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from isogloss.tree.nodes import Node, Tree

ADAPTER = "default"


class Routing:
    """Which rank rows each row of the current batch reads; shared by every layer of one model.

    Rows of one language read the same rank rows, so weights are gathered once per *distinct* path.
    """

    def __init__(self, tree: Tree):
        self.tree = tree
        self.width = max(1, tree.path_rank())
        self.rows: Int[Tensor, "paths width"] | None = None
        self.scale: Float[Tensor, "paths width 1"] | None = None
        self.path_of: Int[Tensor, " batch"] | None = None

    def set(self, languages: Sequence[str], device: torch.device) -> None:
        """The batch's languages, one per row; no node off a row's path is read."""
        distinct = list(dict.fromkeys(languages))
        rows = torch.zeros(len(distinct), self.width, dtype=torch.long)
        scale = torch.zeros(len(distinct), self.width, 1)
        for number, code in enumerate(distinct):
            on = [row for node in self.tree.path(code) for row in node.rows]
            rows[number, : len(on)] = torch.tensor(on, dtype=torch.long)
            scale[number, : len(on)] = 1.0
        self.rows, self.scale = rows.to(device), scale.to(device)
        self.path_of = torch.tensor([distinct.index(code) for code in languages], device=device)

    def gather(
        self, weight: Float[Tensor, "rank features"], dtype: torch.dtype
    ) -> Float[Tensor, "batch width features"]:
        """Each row's share of a weight whose first axis is the tree's rank."""
        if self.rows is None or self.path_of is None:
            raise RuntimeError("no path is set; wrap the forward in carrier.on(languages)")
        return weight[self.rows].to(dtype)[self.path_of]


class _Down(nn.Linear):
    """lora_A, read along each row's path: (batch, tokens, in) → (batch, tokens, width)."""

    routing: Routing

    def forward(self, input: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens width"]:
        return input @ self.routing.gather(self.weight, input.dtype).transpose(1, 2)


class _Up(nn.Linear):
    """lora_B, read along each row's path; rows beyond a short path are scaled to zero."""

    routing: Routing

    def forward(self, input: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens features"]:
        routing = self.routing
        if routing.rows is None or routing.path_of is None or routing.scale is None:
            raise RuntimeError("no path is set; wrap the forward in carrier.on(languages)")
        columns = (self.weight.t()[routing.rows] * routing.scale).to(input.dtype)
        return input @ columns[routing.path_of]


class TreeLora:
    """A frozen model with a tree of adapters; carriers are off unless a path is set.

    Args:
        model: The reference model; its weights are frozen here.
        tree: Nodes and their ranks.
        targets: Names of the modules that carry adapters, as PEFT takes them.
        scaling: What the adapter's output is multiplied by (PEFT's alpha / r).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tree: Tree,
        *,
        targets: Sequence[str],
        scaling: float,
    ):
        self.tree, self.scaling, self.targets = tree, scaling, list(targets)
        config = LoraConfig(
            r=tree.rank,
            lora_alpha=tree.rank * scaling,  # type: ignore[arg-type]  # any number is read as alpha
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )
        model.requires_grad_(False)
        self.model: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        self.routing = Routing(tree)
        for layer in self.layers():
            for part, kind in ((layer.lora_A, _Down), (layer.lora_B, _Up)):
                linear = part[ADAPTER]
                linear.__class__ = kind
                object.__setattr__(linear, "routing", self.routing)  # state, not a submodule
            # The products run in the base's type; PEFT would carry every input over to float32.
            layer.cast_input_dtype_enabled = False
        self.off()

    def layers(self) -> Iterator[LoraLayer]:
        return (m for m in self.model.modules() if isinstance(m, LoraLayer))

    def off(self) -> None:
        """The reference model, bit for bit."""
        for layer in self.layers():
            layer._disable_adapters = True

    @contextmanager
    def on(self, languages: Sequence[str]) -> Iterator[PeftModel]:
        """The student: row b of every forward inside reads the path of `languages[b]`."""
        self.set_path(languages)
        try:
            yield self.model
        finally:
            self.off()

    def set_path(self, languages: Sequence[str]) -> None:
        """As `on`, for a training step whose backward lies outside."""
        self.routing.set(languages, next(self.model.parameters()).device)
        for layer in self.layers():
            layer._disable_adapters = False

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if "lora_" in name}

    def node_parameters(self, node: Node) -> dict[str, Tensor]:
        """Views of a node's own rows and columns."""
        rows = slice(node.start, node.start + node.rank)
        return {
            name: p.data[rows] if "lora_A" in name else p.data[:, rows]
            for name, p in self.parameters().items()
        }

    def path_state(self, language: str) -> dict[str, Tensor]:
        """An ordinary PEFT state dict of rank Σ r(path)."""
        on = torch.tensor([row for node in self.tree.path(language) for row in node.rows], dtype=torch.long)
        return {
            name.replace(f".{ADAPTER}", ""): (p.data[on] if "lora_A" in name else p.data[:, on])
            .contiguous()
            .clone()
            for name, p in self.parameters().items()
        }

    def export(self, language: str, folder: Path, base_model: str, max_rank: int | None = None) -> int:
        """Write a language's path as a PEFT LoRA that `PeftModel.from_pretrained` loads; returns its rank."""
        folder.mkdir(parents=True, exist_ok=True)
        state, rank = self.path_state(language), sum(node.rank for node in self.tree.path(language))
        if max_rank is not None and max_rank < rank:
            state, rank = nearest_of_rank(state, max_rank), max_rank
        config = LoraConfig(
            r=rank,
            lora_alpha=rank * self.scaling,  # type: ignore[arg-type]
            target_modules=self.targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_model,
            inference_mode=True,
        )
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        return rank

    def learn_only(self, nodes: Iterable[Node]) -> None:
        """From now on no other node gets a gradient, so its rows stay as they are to the bit."""
        mask = torch.zeros(self.tree.rank)
        for node in nodes:
            mask[node.start : node.start + node.rank] = 1.0
        for name, p in self.parameters().items():
            kept = mask[:, None] if "lora_A" in name else mask[None]
            p.register_hook(lambda gradient, kept=kept.to(p.device): gradient * kept)

    def load_nodes(self, state: dict[str, Tensor], tree: Tree) -> None:
        """Take over the rows of every node that another tree's carriers share with this one by name."""
        with torch.no_grad():
            for name, p in self.parameters().items():
                for node in tree.nodes:
                    own = self.tree.by_name.get(node.name)
                    if own is not None:
                        theirs, ours = list(node.rows), list(own.rows)
                        if "lora_A" in name:
                            p[ours] = state[name][theirs].to(p)
                        else:
                            p[:, ours] = state[name][:, theirs].to(p)

    def state(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.parameters().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        own = self.parameters()
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in state.items()}:
            raise ValueError("these carriers belong to a model or tree of another shape")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])


def nearest_of_rank(state: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The LoRA of a smaller rank whose products B·A are nearest in the Frobenius norm.

    The largest singular values of each product are kept (Eckart & Young 1936, doi:10.1007/BF02288367),
    found through the QR factors of B and Aᵀ, which are as thin as the rank. Scaling stays as it was.
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
