"""Bytes that are alive at once, from one step on tensors without storage."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from isogloss.adapters.lora import TreeLora
from isogloss.errors import ConfigError
from isogloss.model.attention import thrifty_attention
from isogloss.model.base_files import read_config
from isogloss.model.branches import branched_hidden
from isogloss.model.decoder import causal_of, decoder_of, head, last_hidden, layers_of, readout
from isogloss.model.load import model_folder
from isogloss.model.standardise import Statistics
from isogloss.teacher.signals import LOGITS
from isogloss.train.batch import Batch, Options, Sample, Twins, collate
from isogloss.train.objective import WEIGHED, Weights, batch_losses


def meta_model(name: str, dtype: torch.dtype, *, gpu: bool) -> PreTrainedModel:
    """A model of a folder's or hub name's shapes, without storage, attention as `load_model` would take it.

    Raises:
        ConfigError: There is no config.json.
    """
    folder = model_folder(name)
    try:
        config = read_config(name, folder)
    except OSError as error:
        raise ConfigError(f"model: {name} has no config.json that transformers reads") from error
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa" if gpu else "eager"
        )
    return model.eval()


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, now and at most; views and parameters cost nothing.

    Autograd's saved tensors, gradients and the products' own intermediate results are among them.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._there: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0  # a question about values, such as whether no token is padding, is answered no
        made = func(*args, **kwargs)
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._there:
                    self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._there.pop(key, None)

        self._there[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def step_bytes(
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Weights,
    adapters: TreeLora | None = None,
    *,
    twins: int = 0,
    gpu: bool = False,
) -> int:
    """Most bytes that a micro-batch's forward, losses and backward hold at once, gradients included.

    Args:
        model: Without storage; for stage 2 the one under the adapters.
        twins: How many meanings there are in all.
        gpu: It will be done on one.
    """
    batch = _without_storage(collate(samples, 0))
    signals = [s.signal for s in samples if s.signal is not None]
    known, every = [signal.twin for signal in signals if signal.twin is not None], None
    if known:
        with torch.device("meta"):
            none = Statistics(torch.empty(len(known[0])), torch.empty(len(known[0])))
            vectors = torch.empty(max(twins, len(known)), len(known[0]))
            every = Twins(vectors, {False: none, True: none})
    readout(model)  # is looked for once, long before a step
    with Alive() as alive, thrifty_attention(model):
        parts = batch_losses(model, batch, weights, adapters, every, gpu=gpu)
        loss: Any = sum(getattr(weights, WEIGHED.get(name, name)) * part for name, part in parts.items())
        loss.backward()
    model.zero_grad(set_to_none=True)
    return alive.most


@torch.no_grad()
def read_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Most bytes that reading a batch holds at once, head aside."""
    with Alive() as alive:
        last_hidden(
            model,
            torch.zeros(rows, width, dtype=torch.long, device="meta"),
            torch.ones(rows, width, dtype=torch.long, device="meta"),
        )
    return alive.most


@torch.no_grad()
def options_bytes(model: nn.Module, rows: int, width: int, tokens: int) -> int:
    """Most bytes that reading a batch of answer sets holds at once.

    Args:
        width: Tokens of the longest prompt with all its answers.
        tokens: Of all answers, a chunk of whose logits is held.
    """
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    vocab = causal_of(model).config.get_text_config().vocab_size
    with Alive() as alive:
        states = branched_hidden(model, ids, ids, ids).flatten(0, 1)[: min(tokens, max(1, LOGITS // vocab))]
        head(model, states).float().logsumexp(1)
    return alive.most


@torch.no_grad()
def cache_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Bytes that the model itself keeps of what it has read: keys and values, windows of them, or states."""
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    with Alive():  # which answers what a decoder asks about values
        found: Any = decoder_of(model)(input_ids=ids, use_cache=True)
    kept = getattr(found, "past_key_values", None) or getattr(found, "cache_params", None)
    return sum(tensor.nbytes for tensor in _tensors(kept, set()) if tensor.is_floating_point())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in a cache, each once, whatever its class calls it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:  # a single number, such as the length of a window, is no state
            yield value
    elif isinstance(value, Mapping):
        yield from (one for each in value.values() for one in _tensors(each, seen))
    elif isinstance(value, list | tuple):
        yield from (one for each in value for one in _tensors(each, seen))
    elif type(value).__module__.startswith("transformers.") and not isinstance(value, PretrainedConfig):
        yield from _tensors(vars(value), seen)


def _without_storage(batch: Batch) -> Batch:
    """Masks of rows and tokens stay as they are: they decide shapes."""
    entries: dict[str, Any] = {
        name: value.to(torch.device("meta"))
        if isinstance(value, Options) or (isinstance(value, Tensor) and value.dtype != torch.bool)
        else value
        for name, value in vars(batch).items()
    }
    return Batch(**entries)


def parameter_bytes(
    model: nn.Module, *, adapters: bool = False, four_bit: bool = False, parts: int = 1
) -> int:
    """Bytes of the frozen weights, tied ones once; or those of the adapters.

    Args:
        four_bit: Linear layers below the head hold 4 bits a weight, 8 for each 64 of them, 32 for each 256 of
            those (Dettmers et al. 2023, arXiv:2305.14314, section 3).
        parts: Processes over which the layers' frozen weights are split.
    """
    packed = set()
    if four_bit:
        linear = (m for m in layers_of(model).modules() if isinstance(m, nn.Linear))
        packed = {id(m.weight) for m in linear}
    each = 4 / 8 + 1 / 64 + 4 / (64 * 256)
    total = sum(
        p.numel() * (each if id(p) in packed else p.element_size())
        for n, p in model.named_parameters()
        if ("lora_" in n) == adapters
    )
    if parts > 1 and not adapters:
        layers = [
            sum(p.nbytes for n, p in layer.named_parameters() if "lora_" not in n)
            for layer in layers_of(model)
        ]
        total -= sum(layers) * (1 - 1 / parts)
        total += sum(sorted(layers)[-2:])
    return round(total)
