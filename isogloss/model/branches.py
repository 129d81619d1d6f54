"""Several answers to one prompt in a single row: the prompt is processed once, and no answer sees another.

    ids       prompt … | response | option | option
    branch    0 0 0  0 | 1 1 1    | 2 2    | 3 3 3       (-1 on padding)
    place     0 1 2  3 | 4 5 6    | 4 5    | 4 5 6       position IDs as if each answer were the only one

A token attends to the prompt and to its own branch, through a 4D attention mask. So each answer has the same
log-probability as in a separate row, at the cost of its own tokens only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from isogloss.model.decoder import (
    decoder_of,
    keeps_keys_alone,
    last_hidden,
    layer_types,
    text_config,
)

ATTENTION = {"full_attention", "sliding_attention"}
"""Layer types, in transformers' terms, that a 4D attention mask fully controls."""


def branches_fit(model: nn.Module) -> bool:
    """Return whether every layer follows the attention mask and the position IDs only.

    Recurrent layers read all earlier tokens; ALiBi (BLOOM, MPT) and GPT-Neo's local layers count columns
    instead of using position IDs. Besides checking the layer types, this compares an answer's hidden states
    after another answer with those in a separate row.
    """
    if not attends_alone(model):
        return False
    config, first = text_config(model), next(model.parameters())
    ids = torch.linspace(3, config.vocab_size - 1, 9, device=first.device).long()
    branch, place, starts = layout(3, [3, 3])
    rows = [torch.tensor([one], device=first.device) for one in (branch, place)]
    apart = [*range(3), *range(starts[1], 9)]
    try:
        with torch.no_grad():
            both = branched_hidden(model, ids[None], *rows)[0, apart].float()
            alone = last_hidden(model, ids[None, apart], torch.ones_like(ids[None, apart]))[0].float()
    except (RuntimeError, ValueError, TypeError, AttributeError):  # it does not support a 4D mask
        return False
    return bool((both - alone).abs().max() <= 0.05 * alone.abs().max().clamp(min=1e-6))


def attends_alone(model: nn.Module) -> bool:
    """Return whether, by its configuration, every layer only attends where the mask allows it."""
    config = text_config(model)
    return keeps_keys_alone(model) and layer_types(model) <= ATTENTION and config.model_type != "gpt_neo"


def layout(prompt: int, answers: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the branch and position ID of each token of one row, and the index where each answer begins.

    Args:
        prompt: Length of the prompt in tokens.
        answers: Length of each answer in tokens.
    """
    branch, place, starts = [0] * prompt, list(range(prompt)), []
    for number, length in enumerate(answers, start=1):
        starts.append(len(branch))
        branch += [number] * length
        place += range(prompt, prompt + length)
    return branch, place, starts


def predictors(prompt: int, start: int, length: int) -> list[int]:
    """Return the indices that predict an answer's tokens: every first token by the prompt's last token.

    Args:
        prompt: Length of the prompt in tokens.
        start: Index where the answer begins.
        length: Length of the answer in tokens.
    """
    return [prompt - 1, *range(start, start + length - 1)]


def visible(branch: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens tokens"]:
    """Return which token (second axis) may attend to which (third axis); padding attends only to itself."""
    tokens = branch.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril()
    own = branch[:, :, None] == branch[:, None, :]
    shared = (branch == 0)[:, None, :] & (branch >= 0)[:, :, None]
    seen = causal & (own | shared) & (branch >= 0)[:, None, :]
    return seen | torch.eye(tokens, dtype=torch.bool, device=branch.device)


def branched_hidden(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], branch: Int[Tensor, "batch tokens"], place: Tensor
) -> Float[Tensor, "batch tokens hidden"]:
    """Return the hidden states after the final norm, where each answer sees only its prompt and itself."""
    dtype = next(model.parameters()).dtype
    kinds, seen = layer_types(model), visible(branch)
    window = getattr(text_config(model), "sliding_window", None)
    near = seen if window is None else seen & (place[:, :, None] - place[:, None, :] < window)

    def additive(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=ids.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    masks = {"full_attention": seen, "sliding_attention": near}
    given: Any = {kind: additive(masks[kind]) for kind in kinds} if kinds else additive(near)
    found = decoder_of(model)(input_ids=ids, attention_mask=given, position_ids=place, use_cache=False)
    return found.last_hidden_state
