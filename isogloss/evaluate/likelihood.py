"""Closed tasks without generation: the option that the model finds likeliest.

Flow: prompts → keys and values, once for what they share → each option behind them → log-probability of the
whole answer. A batch is of one language, whose prompts begin alike: all of them with the words of the
template, some with a whole premise. Such a beginning is read once and its keys and values are shared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from isogloss.data.chat import encode_prompt, encode_response, pad
from isogloss.model import causal_of, decoder_of, fused_attention, head, most_tokens, pad_id
from isogloss.tree.carrier import Carrier

Ids = Sequence[int]
SHARED = 8
"""Tokens in common that are worth a forward of their own."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    options: Sequence[Mapping[str, str]],
    *,
    languages: Sequence[str] | None = None,
    carrier: Carrier | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, float]]:
    """ln p(option and end of turn | instruction) of every option of every instruction, in nats.

    The end of turn belongs to the answer, so the options are whole answers and their probabilities add up to
    no more than 1: no option gains by being the beginning of another, and no length has to be divided out.

    Args:
        options: By meaning, the wordings that may answer each instruction.
        languages: With a carrier, whose path each row reads; without it the reference model is asked.
        batch: Rows of a forward, at most.
    """
    model.eval()
    answer = cache(lambda wording: encode_response(tokenizer, wording))  # options are the same in many rows
    prompts = [encode_prompt(tokenizer, text) for text in instructions]
    answers = [[answer(wording) for wording in wordings.values()] for wordings in options]
    found: list[dict[str, float]] = [{} for _ in prompts]
    done = 0
    for units in _batches(prompts, languages or [""] * len(prompts), batch, most_tokens(model)):
        chosen = [number for unit in units for number in unit]

        def set_path(rows: int, code: str = languages[chosen[0]] if languages else "") -> None:
            if carrier is not None and languages is not None:
                carrier.set_path([code] * rows)

        try:
            with fused_attention(model):
                scores = _score(
                    model, [prompts[n] for n in chosen], [answers[n] for n in chosen], pad_id(tokenizer),
                    list(map(len, units)), set_path,
                )  # fmt: skip
        finally:
            if carrier is not None:
                carrier.off()
        for number, row in zip(chosen, scores, strict=True):
            found[number] = dict(zip(options[number], row, strict=True))
        done += len(chosen)
        progress(done, len(prompts))
    return found


def _batches(
    prompts: Sequence[Ids], languages: Sequence[str], rows: int, tokens: float
) -> Iterator[list[list[int]]]:
    """Row numbers by batch and unit: rows of one language, of about one length, alone or all in company."""
    for code in dict.fromkeys(languages):
        order = sorted((n for n, its in enumerate(languages) if its == code), key=lambda n: tuple(prompts[n]))
        units = _units(order, prompts, rows)
        units.sort(key=lambda unit: (len(unit) > 1, max(len(prompts[n]) for n in unit)))
        made: list[list[int]] = []
        for unit in units:
            longest = max(len(prompts[n]) for n in unit)
            count = sum(map(len, made)) + len(unit)
            full = count > rows or count * longest > tokens
            if made and (full or (len(made[0]) > 1) != (len(unit) > 1)):
                yield made
                made = []
            made.append(unit)
        yield made


def _units(order: Sequence[int], prompts: Sequence[Ids], rows: int) -> list[list[int]]:
    """Neighbours in the alphabet that share most of what not all have in common, such as a premise."""
    least = len(_beginning([prompts[order[0]], prompts[order[-1]]]))
    units: list[list[int]] = []
    for number in order:
        first = prompts[units[-1][0]] if units else ()
        alike = len(_beginning([first, prompts[number]])) - least
        if alike >= max(SHARED, (len(prompts[number]) - least) / 2) and len(units[-1]) < rows:
            units[-1].append(number)
        else:
            units.append([number])
    return units


def _beginning(prompts: Sequence[Ids]) -> Ids:
    """What all have in common, but for the last token of each, whose state predicts the answer."""
    places = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, places))


def _levels(
    prompts: Sequence[Ids], sizes: Sequence[int], longest: float
) -> list[tuple[list[Ids], list[int]]]:
    """What is read in turn: texts, and the number of the text of the level before that each stands behind.

    Args:
        sizes: Of each unit, how many of the prompts it has.
        longest: Tokens that a level's padding and texts may fill in all.
    """
    unit_of = [unit for unit, size in enumerate(sizes) for _ in range(size)]
    whole = _beginning(prompts)
    lead = whole if len(whole) >= SHARED else ()
    levels = [([lead], [0])] if lead else []
    begun = [len(lead)] * len(prompts)
    if len(sizes) < len(prompts):
        heads = [
            _beginning([p for p, its in zip(prompts, unit_of, strict=True) if its == unit])
            for unit in range(len(sizes))
        ]
        if len(heads) > 1 and min(map(len, heads)) > len(lead):
            levels.append(([one[len(lead) :] for one in heads], [0] * len(heads)))
            begun = [len(heads[unit]) for unit in unit_of]
    rest = [prompt[start:] for prompt, start in zip(prompts, begun, strict=True)]
    behind = unit_of if levels and len(levels[-1][0]) > 1 else [0] * len(prompts)
    levels.append((rest, behind))
    if sum(max(map(len, texts)) for texts, _ in levels) > longest:
        return [(list(prompts), [0] * len(prompts))]
    return levels


def _score(
    model: nn.Module,
    prompts: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    blank: int,
    sizes: Sequence[int] | None = None,
    set_path: Callable[[int], None] = lambda rows: None,
) -> list[list[float]]:
    """Rows × their options; prompts are padded on the left, so that every option begins at one place.

    Args:
        sizes: Of each unit of rows that begin alike, how many of the prompts it has; each row is one without.
        set_path: Called with the rows of a forward before it.
    """
    device = next(model.parameters()).device
    past, mask, hidden = DynamicCache(), None, None
    more = max(len(answer) for row in options for answer in row)
    # Blanks between a beginning and its rest would count in a sliding window.
    longest = (getattr(causal_of(model).config.get_text_config(), "sliding_window", None) or torch.inf) - more
    for texts, behind in _levels(prompts, sizes or [1] * len(prompts), longest):
        ids, there = (t.to(device) for t in pad([list(text) for text in texts], blank, "left"))
        if mask is not None:
            rows = torch.tensor(behind, device=device)
            past.batch_select_indices(rows)
            there = torch.cat([mask[rows], there], 1)
        mask = there
        set_path(len(texts))
        hidden = _read(model, ids, mask, past)
    assert mask is not None and hidden is not None
    first = _log_softmax(model, hidden[:, -1:])
    scores: list[list[float]] = [[] for _ in prompts]
    for place in range(max(map(len, options))):
        # A row with fewer options reads an end of its own, which nobody counts.
        answers = [list(row[place]) if place < len(row) else [blank] for row in options]
        behind, there = (t.to(device) for t in pad(answers, blank))
        logits = first
        if behind.shape[1] > 1:
            hidden = _read(model, behind[:, :-1], torch.cat([mask, there[:, :-1]], 1), past)
            logits = torch.cat([first, _log_softmax(model, hidden)], 1)
            past.crop(1 - behind.shape[1])
        each = logits.gather(-1, behind[..., None])[..., 0] * there
        for number, total in enumerate(each.sum(1).tolist()):
            if place < len(options[number]):
                scores[number].append(total)
    return scores


def _read(model: nn.Module, ids: Tensor, mask: Tensor, past: Any) -> Tensor:
    """Last hidden states of `ids`, which stand at the end of what the mask covers."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return decoder_of(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
    ).last_hidden_state


def _log_softmax(model: nn.Module, hidden: Tensor) -> Tensor:
    logits = head(model, hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
    return torch.log_softmax(logits.float(), -1)
