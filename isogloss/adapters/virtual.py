"""Carriers of virtual positions, which stand before a row's tokens: a block per node along the path.

`TreePrefix` has keys and values for every layer, `TreeEmbedding` soft tokens. Both meet the model at one
place only, where its decoder is called: a hook puts the path's positions before what is read, lengthens the
mask, counts positions from it and takes the virtual ones out of what comes back. So last hidden states,
logits and generation have the tokens' own positions, and any decoder of transformers will do. Behind a cache
the positions are there already: a cache belongs to the path under which it was begun.

Flow: Routing → gathered rows → cache (prefix) or input embeddings (embedding) → decoder → tokens' states.
Letters: P virtual positions of the longest path in the batch; a shorter path is masked in front.
"""

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from isogloss.adapters.base import Carrier, Routing
from isogloss.adapters.tree import Node, Tree
from isogloss.errors import ConfigError, RunError
from isogloss.model.decoder import decoder_of

PROBED = 32
"""Tokens whose keys, values or embeddings say how random rows are spread."""


class Carried(nn.Module):
    """The frozen model and what learns beside it; only the latter is saved and loaded.

    Calls, and whatever this module lacks, are the model's.
    """

    def __init__(self, base: PreTrainedModel, rows: Mapping[str, Tensor]):
        super().__init__()
        self.base = base
        self.rows = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in rows.items()})

    def get_base_model(self) -> PreTrainedModel:
        return self.base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.rows.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return self.rows.load_state_dict(state_dict, strict, assign)


class Virtual(Carrier):
    """What the two have in common.

    Args:
        model: The reference model; its weights are frozen here.
        tree: Nodes and their numbers of virtual positions.
    """

    def __init__(self, model: PreTrainedModel, tree: Tree):
        model.requires_grad_(False)
        self.tree, self.routing = tree, Routing(tree)
        self._decoder: Any = decoder_of(model)
        self._takes = inspect.signature(self._decoder.forward)
        self._rest = [p.name for p in self._takes.parameters.values() if p.kind is p.VAR_KEYWORD]
        self._embed: Any = model.get_input_embeddings()
        self._read_tokens, self._keeps = 0, True
        self.model = Carried(model, self._random(model))
        self._decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        self._decoder.register_forward_hook(self._after)

    @abstractmethod
    def samples(self, ids: Sequence[int], behind: str | None) -> dict[str, Float[Tensor, "tokens ..."]]:
        """What the frozen model makes of some tokens, shaped like rows of the parameters.

        Args:
            behind: The node whose path stands before them; nothing: they are the first.
        """

    @abstractmethod
    def put_before(self, call: dict[str, Any]) -> int:
        """Put the path's positions into a call of the decoder; returns by how many its states are longer."""

    @abstractmethod
    def peft(
        self, language: str, about: dict[str, Any]
    ) -> tuple[Float[Tensor, "tokens features"], PeftConfig]:
        """A path as PEFT writes it."""

    def off(self) -> None:
        self.routing.clear()

    def set_path(self, languages: Sequence[str]) -> None:
        device = next(self.model.parameters()).device
        self.routing.set(languages, device)

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.rows.items())

    def start(
        self, init: str, texts: Mapping[str, Sequence[int]], nodes: Iterable[Node] | None = None
    ) -> None:
        """As in `Carrier.start`; a text is cut or repeated to the node's length. The root has no parent and
        reads its text; a node without what it should begin with stays random."""
        for node in nodes or self.tree.nodes:
            parent = None if node.parent is None else self.tree.by_name[node.parent]
            ids = list(texts.get(node.name, ()))
            if init == "random" or not node.rank:
                continue
            if init == "parent" and parent is not None and parent.rank:
                rows = [parent.start + number % parent.rank for number in range(node.rank)]
                found = {name: self.rows_of(name, p.data, rows) for name, p in self.parameters().items()}
            elif ids:
                wanted = [ids[number % len(ids)] for number in range(node.rank)]
                found = self.samples(wanted, node.parent)
            else:
                continue
            for name, rows in self.node_parameters(node).items():
                rows.copy_(found[name])
        self.off()

    def reads(self, language: str) -> bool:
        return bool(self.tree.rows(language))

    def path_rows(self, language: str) -> dict[str, Tensor]:
        """A path's rows, as every parameter has them."""
        if not (on := self.tree.rows(language)):
            raise RunError(
                f"{language} has no virtual positions of its own nor through the tree; leave it out"
            )
        return {name: self.rows_of(name, p.data, on) for name, p in self.parameters().items()}

    def export(self, language: str, folder: Path, base_model: str, max_rank: int | None = None) -> int:
        if max_rank is not None:
            raise RunError("virtual positions have no rank to be refit to; leave it out, or export as lora")
        config = self._decoder.config.get_text_config()
        about = {
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "num_layers": config.num_hidden_layers,
            "num_transformer_submodules": 1,
        }
        rows, settings = self.peft(language, about)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {"prompt_embeddings": rows.contiguous()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        settings.save_pretrained(str(folder))
        return len(rows)

    def _random(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Rows as far apart as what the model itself makes of tokens drawn at random."""
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (PROBED,), generator=torch.Generator().manual_seed(0)).tolist()
        rows = {}
        for name, found in self.samples(ids, None).items():
            noise = torch.randn(self.tree.rank, *found.shape[1:]).to(found.device)
            rows[name] = found.mean(0) + found.std(0) * noise
        return rows

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """The decoder's call with the path's positions; None leaves it as it is."""
        scale, path_of = self.routing.scale, self.routing.path_of
        self._read_tokens, self._keeps = 0, True
        if scale is None or path_of is None or not scale.shape[1]:
            return None
        call = dict(self._takes.bind_partial(*args, **kwargs).arguments)
        for name in self._rest:
            call |= call.pop(name, {})
        read = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        batch, tokens = read.shape[:2]
        if len(path_of) == 1 != batch:
            path_of = self.routing.repeat(batch)  # one path for whatever is read
        if len(path_of) != batch:
            raise RuntimeError(f"a path is set for {len(path_of)} rows and {batch} are read")
        cache = call.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        virtual = scale[path_of][..., 0].long()  # batch P
        mask = call.get("attention_mask")
        if mask is None:
            mask = virtual.new_ones(batch, max(0, past - virtual.shape[1]) + tokens)
        elif mask.ndim != 2:
            raise RuntimeError("virtual positions need an attention mask of one row per text")
        call["attention_mask"] = mask = torch.cat([virtual.to(mask.dtype), mask], 1)
        self._read_tokens, self._keeps = tokens, cache is not None or call.get("use_cache") is not False
        length = tokens if past else tokens + self.put_before(call)
        if "position_ids" in self._takes.parameters:
            call["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        return (), call

    def _after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The states of the tokens that were read, without those of virtual positions."""
        if self.routing.rows is None:
            return None
        tokens = self._read_tokens
        if isinstance(output, tuple):
            return (output[0][:, -tokens:], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, -tokens:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(states[:, -tokens:] for states in output.hidden_states)
        if not self._keeps:
            output.past_key_values = None  # a cache that nobody asked for would be taken for the text's
        return output


class TreePrefix(Virtual):
    """Keys and values of every layer, as they stand behind whatever the model does to them (rotation, norms).

    Raises:
        ConfigError: A layer of the model has no keys and values.
    """

    def samples(self, ids: Sequence[int], behind: str | None) -> dict[str, Float[Tensor, "tokens ..."]]:
        device = self._embed.weight.device
        cache = DynamicCache()
        if behind is not None:
            self.set_path([behind])
        read, ones = torch.tensor([list(ids)], device=device), torch.ones(1, len(ids), device=device).long()
        with torch.no_grad():
            self._decoder(input_ids=read, attention_mask=ones, past_key_values=cache, use_cache=True)
        self.off()
        found = {}
        for number in range(self._decoder.config.get_text_config().num_hidden_layers):
            layer: Any = cache.layers[number] if number < len(cache.layers) else None
            for part in ("keys", "values"):
                tensor = getattr(layer, part, None)
                if tensor is None:
                    raise ConfigError(
                        f"distill.adapter.type: prefix needs keys and values in every layer, and layer "
                        f"{number + 1} of {type(self._decoder).__name__} has none; take lora or embedding"
                    )
                found[f"{part}_{number}"] = tensor[0, :, -len(ids) :].transpose(0, 1).float()
        return found

    def put_before(self, call: dict[str, Any]) -> int:
        cache = call.get("past_key_values")
        if cache is None:
            cache = call["past_key_values"] = DynamicCache()
        rows, dtype = self.model.rows, self._embed.weight.dtype
        for number in range(len(rows) // 2):
            keys, values = (
                self.routing.gather(rows[f"{part}_{number}"], dtype).transpose(1, 2)
                for part in ("keys", "values")
            )
            cache.update(keys, values, number)
        return 0

    def peft(
        self, language: str, about: dict[str, Any]
    ) -> tuple[Float[Tensor, "tokens features"], PeftConfig]:
        rows = self.path_rows(language)
        if len({tensor.shape for tensor in rows.values()}) > 1:
            raise RunError("PEFT's prefix tuning wants keys and values of one shape; export as lora instead")
        layers = [rows[f"{part}_{n}"] for n in range(len(rows) // 2) for part in ("keys", "values")]
        positions, heads, width = layers[0].shape
        config = PrefixTuningConfig(
            num_virtual_tokens=positions, token_dim=heads * width, num_attention_heads=heads, **about
        )
        return torch.stack(layers, 1).flatten(1), config


class TreeEmbedding(Virtual):
    """Soft tokens, in the space of the model's input embeddings."""

    def samples(self, ids: Sequence[int], behind: str | None) -> dict[str, Float[Tensor, "tokens ..."]]:
        with torch.no_grad():
            return {
                "embedding": self._embed(torch.tensor(list(ids), device=self._embed.weight.device)).float()
            }

    def put_before(self, call: dict[str, Any]) -> int:
        ids, given = call.get("input_ids"), call.get("inputs_embeds")
        embedded = self._embed(ids) if given is None else given
        soft = self.routing.gather(self.model.rows["embedding"], embedded.dtype)
        call["input_ids"], call["inputs_embeds"] = None, torch.cat([soft, embedded], 1)
        return soft.shape[1]

    def peft(
        self, language: str, about: dict[str, Any]
    ) -> tuple[Float[Tensor, "tokens features"], PeftConfig]:
        rows = self.path_rows(language)["embedding"]
        config = PromptTuningConfig(
            num_virtual_tokens=len(rows),
            token_dim=rows.shape[1],
            num_attention_heads=self._decoder.config.get_text_config().num_attention_heads,
            **about,
        )
        return rows, config
