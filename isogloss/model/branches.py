"""Several answers behind one prompt, in one row: the prompt is read once, and no answer sees another.

    ids       prompt … | response | option | option
    branch    0 0 0  0 | 1 1 1    | 2 2    | 3 3 3       (-1 on padding)
    place     0 1 2  3 | 4 5 6    | 4 5    | 4 5 6       positions as if each answer stood there alone

A token attends to the prompt and to its own branch, which a mask over pairs of tokens says. So each answer's
log-probability is what it would be in a row of its own, for the price of its own tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from isogloss.model.decoder import causal_of, decoder_of, keeps_keys_alone, last_hidden

ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layers, in transformers' words, that a mask over pairs of tokens decides about."""


def branches_fit(model: nn.Module) -> bool:
    """Whether every layer of the model attends through a mask and goes by positions alone.

    Recurrent layers read what stands before; ALiBi (BLOOM, MPT) and GPT-Neo's local layers count columns.
    Told by reading two answers in one row and each by itself.
    """
    config = causal_of(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if not keeps_keys_alone(model) or not set(kinds) <= ATTENTION or config.model_type == "gpt_neo":
        return False
    first = next(model.parameters())
    ids = torch.linspace(3, config.vocab_size - 1, 9, device=first.device).long()
    branch, place, starts = layout(3, [3, 3])
    rows = [torch.tensor([one], device=first.device) for one in (branch, place)]
    apart = [*range(3), *range(starts[1], 9)]
    try:
        with torch.no_grad():
            both = branched_hidden(model, ids[None], *rows)[0, apart].float()
            alone = last_hidden(model, ids[None, apart], torch.ones_like(ids[None, apart]))[0].float()
    except (RuntimeError, ValueError, TypeError, AttributeError):  # it takes no mask over pairs of tokens
        return False
    return bool((both - alone).abs().max() <= 0.05 * alone.abs().max().clamp(min=1e-6))


def layout(prompt: int, answers: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Of one row: the branch and the place of each token, and where each answer begins.

    Args:
        prompt: Tokens of the prompt.
        answers: Tokens of each answer.
    """
    branch, place, starts = [0] * prompt, list(range(prompt)), []
    for number, length in enumerate(answers, start=1):
        starts.append(len(branch))
        branch += [number] * length
        place += range(prompt, prompt + length)
    return branch, place, starts


def predictors(prompt: int, start: int, length: int) -> list[int]:
    """Where the tokens of an answer are predicted in its row: the prompt's last token predicts every first.

    Args:
        prompt: Tokens of the prompt.
        start: Where the answer begins.
        length: Tokens of the answer.
    """
    return [prompt - 1, *range(start, start + length - 1)]


def visible(branch: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens tokens"]:
    """Which token (second axis) may look at which (third axis); padding sees itself alone."""
    tokens = branch.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril()
    own = branch[:, :, None] == branch[:, None, :]
    shared = (branch == 0)[:, None, :] & (branch >= 0)[:, :, None]
    seen = causal & (own | shared) & (branch >= 0)[:, None, :]
    return seen | torch.eye(tokens, dtype=torch.bool, device=branch.device)


def branched_hidden(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], branch: Int[Tensor, "batch tokens"], place: Tensor
) -> Float[Tensor, "batch tokens hidden"]:
    """Hidden states after the final norm, each answer read behind its prompt alone."""
    dtype = next(model.parameters()).dtype
    config = causal_of(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    seen = visible(branch)
    window = getattr(config, "sliding_window", None)
    near = seen
    if window is not None:
        near = seen & (place[:, :, None] - place[:, None, :] < window)

    def additive(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=ids.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    if kinds:
        masks = {"full_attention": seen, "sliding_attention": near}
        given: Any = {kind: additive(masks[kind]) for kind in kinds}
    else:
        given = additive(near)
    return (
        decoder_of(model)(input_ids=ids, attention_mask=given, position_ids=place, use_cache=False)
    ).last_hidden_state
