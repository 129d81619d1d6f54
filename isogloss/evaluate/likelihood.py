"""Closed tasks without generation: choose the likeliest option.

Flow: prompts → KV cache, computed once per shared prefix → each option appended → log-probability of the
whole answer. All prompts of a language start with the words of the template (the lead), and groups of them
(units) share a longer prefix, such as a premise. Each shared prefix is read once and its keys and values are
reused. With a recurrent state (Mamba, linear attention), nothing is shared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from isogloss.adapters.lora import TreeLora
from isogloss.data.chat import encode_prompt, encode_response, pad
from isogloss.model.attention import fused_attention
from isogloss.model.decoder import (
    decoder_of,
    head,
    keeps_keys_alone,
    most_tokens,
    response_states,
    text_config,
)
from isogloss.model.load import pad_id

Ids = Sequence[int]
SHARED = 8
"""Minimum length of a shared prefix, in tokens, to be read in a separate forward pass."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    options: Sequence[Mapping[str, str]],
    *,
    languages: Sequence[str] | None = None,
    adapters: TreeLora | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, float]]:
    """Return ln p(option and end of turn | instruction) for every option of every instruction, in nats.

    The end of turn is part of the answer, so options are complete answers whose probabilities sum to at most
    1: an option does not gain by being a prefix of another, and no length normalisation is needed.

    Args:
        options: For each instruction, the possible wordings by meaning.
        languages: The language of each row, by which rows are grouped. With `adapters`, each row uses its
            language's path; otherwise the reference model is scored.
        batch: Maximum rows per forward pass.
    """
    model.eval()
    answer = cache(lambda wording: encode_response(tokenizer, wording))  # many rows have the same options
    prompts = [encode_prompt(tokenizer, text) for text in instructions]
    answers = [[answer(wording) for wording in wordings.values()] for wordings in options]
    found: list[dict[str, float]] = [{} for _ in prompts]
    shares = keeps_keys_alone(model)
    done = 0
    for code, numbers in _by_language(languages or [""] * len(prompts)).items():

        def set_path(rows: int, code: str = code) -> None:
            if adapters is not None and languages is not None:
                adapters.set_path([code] * rows)

        lead = _beginning([prompts[n] for n in numbers]) if shares else ()
        lead = lead if len(lead) >= SHARED else ()
        begun: list[DynamicCache] = []
        for units in _batches(numbers, prompts, len(lead), batch, most_tokens(model)):
            chosen = [number for unit in units for number in unit]
            try:
                with fused_attention(model):
                    scores = (_score if shares else _score_whole)(
                        model,
                        [prompts[n] for n in chosen],
                        [answers[n] for n in chosen],
                        pad_id(tokenizer),
                        list(map(len, units)),
                        lead,
                        begun,
                        set_path,
                    )
            finally:
                if adapters is not None:
                    adapters.off()
            for number, row in zip(chosen, scores, strict=True):
                found[number] = dict(zip(options[number], row, strict=True))
            done += len(chosen)
            progress(done, len(prompts))
    return found


def _by_language(languages: Sequence[str]) -> dict[str, list[int]]:
    """Group row numbers by language."""
    found: dict[str, list[int]] = {}
    for number, code in enumerate(languages):
        found.setdefault(code, []).append(number)
    return found


def _batches(
    numbers: Sequence[int], prompts: Sequence[Ids], lead: int, rows: int, tokens: float
) -> Iterator[list[list[int]]]:
    """Yield batches of units of similar length; a batch has only single-row or only multi-row units."""
    units = _units(sorted(numbers, key=lambda n: tuple(prompts[n])), prompts, lead, rows)
    units.sort(key=lambda unit: (len(unit) > 1, max(len(prompts[n]) for n in unit)))
    made: list[list[int]] = []
    for unit in units:
        longest = max(len(prompts[n]) for n in unit)
        count = sum(map(len, made)) + len(unit)
        full = count > rows or count * (longest - lead) > tokens
        if made and (full or (len(made[0]) > 1) != (len(unit) > 1)):
            yield made
            made = []
        made.append(unit)
    yield made


def _units(order: Sequence[int], prompts: Sequence[Ids], lead: int, rows: int) -> list[list[int]]:
    """Group rows, sorted by prompt, that share most of what follows the lead, such as a premise."""
    units: list[list[int]] = []
    for number in order:
        first = prompts[units[-1][0]] if units else ()
        alike = len(_beginning([first, prompts[number]])) - lead
        if alike >= max(SHARED, (len(prompts[number]) - lead) / 2) and len(units[-1]) < rows:
            units[-1].append(number)
        else:
            units.append([number])
    return units


def _beginning(prompts: Sequence[Ids]) -> Ids:
    """Return the common prefix, without any prompt's last token, whose state predicts the answer."""
    places = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, places))


def _levels(prompts: Sequence[Ids], sizes: Sequence[int], lead: int) -> list[tuple[list[Ids], list[int]]]:
    """Return the levels to read after the lead: per level, the texts and the index of each text's parent.

    Args:
        sizes: Number of prompts in each unit.
        lead: Length of the lead in tokens.
    """
    if len(sizes) == len(prompts):
        return [([prompt[lead:] for prompt in prompts], [0] * len(prompts))]
    unit_of = [unit for unit, size in enumerate(sizes) for _ in range(size)]
    heads = [
        _beginning([prompt for prompt, its in zip(prompts, unit_of, strict=True) if its == unit])
        for unit in range(len(sizes))
    ]
    rests = [prompt[len(heads[unit]) :] for prompt, unit in zip(prompts, unit_of, strict=True)]
    return [([head[lead:] for head in heads], [0] * len(heads)), (rests, unit_of)]


def _score(
    model: nn.Module,
    prompts: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    blank: int,
    sizes: Sequence[int],
    lead: Ids,
    begun: list[DynamicCache],
    set_path: Callable[[int], None],
) -> list[list[float]]:
    """Return the log-probabilities, rows × options.

    Prompts are padded on the left, so all options start at the same position.

    Args:
        sizes: Number of prompts in each unit with a shared prefix.
        lead: Prefix of all prompts that is read once; empty if there is none.
        begun: Cached keys and values of the lead; empty before the first batch.
        set_path: Called before each forward pass with its number of rows.
    """
    device = next(model.parameters()).device
    levels = _levels(prompts, sizes, len(lead))
    longest = len(lead) + sum(max(map(len, texts)) for texts, _ in levels) + max(map(len, chain(*options)))
    config = text_config(model)
    windows = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size"))
    if longest > min((window for window in windows if window), default=longest):
        # Padding between a prefix and its rest would count in a sliding window, or shift chunk borders.
        lead, levels = (), [(list(prompts), [0] * len(prompts))]
    past = _read_lead(model, lead, begun, set_path) if lead else DynamicCache()
    mask = torch.ones(1, len(lead), dtype=torch.long, device=device)
    for texts, parents in levels[:-1]:
        ids, mask = _behind(texts, parents, mask, past, blank, set_path)
        _read(model, ids, mask, past)
    # The rest of the prompts is read in one forward pass with the first option.
    unread, mask = _behind(*levels[-1], mask, past, blank, set_path)
    first: Tensor | None = None
    scores: list[list[float]] = [[] for _ in prompts]
    for place in range(max(map(len, options))):
        # A row with fewer options reads a dummy token, whose score is discarded.
        answers = [list(row[place]) if place < len(row) else [blank] for row in options]
        said, there = (t.to(device) for t in pad(answers, blank))
        ids = torch.cat([unread, said[:, :-1]], 1)
        found = [] if first is None else [first]
        if ids.shape[1]:
            hidden = _read(model, ids, torch.cat([mask, there[:, :-1]], 1), past)
            found.append(_logits(model, hidden[:, -said.shape[1] :]))
            if said.shape[1] > 1:
                past.crop(1 - said.shape[1])
        logits = torch.cat(found, 1)
        first, unread = logits[:, :1].clone(), unread[:, :0]  # a view would keep all of these logits
        each = (logits.gather(-1, said[..., None])[..., 0] - logits.logsumexp(-1)) * there
        for number, total in enumerate(each.sum(1).tolist()):
            if place < len(options[number]):
                scores[number].append(total)
    return scores


def _score_whole(
    model: nn.Module,
    prompts: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    blank: int,
    sizes: Sequence[int],
    lead: Ids,
    begun: list[DynamicCache],
    set_path: Callable[[int], None],
) -> list[list[float]]:
    """Like `_score`, for models with a recurrent state: every prompt is read with every option."""
    scores: list[list[float]] = [[] for _ in prompts]
    for place in range(max(map(len, options))):
        rows = [number for number, row in enumerate(options) if place < len(row)]
        answers = [options[number][place] for number in rows]
        set_path(len(rows))
        states = response_states(model, [prompts[number] for number in rows], answers, blank)
        for number, answer, hidden in zip(rows, answers, states, strict=True):
            each = head(model, hidden).float().log_softmax(-1)
            said = torch.tensor(answer, device=each.device)
            scores[number].append(float(each.gather(1, said[:, None]).sum()))
    return scores


def _behind(
    texts: Sequence[Ids],
    parents: Sequence[int],
    mask: Tensor,
    past: DynamicCache,
    blank: int,
    set_path: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return a level's token IDs and the extended mask; select each text's parent in the cache, in place."""
    ids, there = (t.to(mask.device) for t in pad([list(text) for text in texts], blank, "left"))
    rows = torch.tensor(parents, device=mask.device)
    past.batch_select_indices(rows)
    set_path(len(texts))
    return ids, torch.cat([mask[rows], there], 1)


def _read_lead(
    model: nn.Module, lead: Ids, begun: list[DynamicCache], set_path: Callable[[int], None]
) -> DynamicCache:
    """Return a copy of the lead's keys and values, computed on first use."""
    if not begun:
        ids = torch.tensor([list(lead)], device=next(model.parameters()).device)
        begun.append(DynamicCache())
        set_path(1)
        _read(model, ids, torch.ones_like(ids), begun[0])
    return deepcopy(begun[0])


def _read(model: nn.Module, ids: Tensor, mask: Tensor, past: Any) -> Tensor:
    """Return the last hidden states of `ids`, the final positions covered by the mask."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return decoder_of(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
    ).last_hidden_state


def _logits(model: nn.Module, hidden: Tensor) -> Tensor:
    return head(model, hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]).float()
