"""Batches: padded rows with their signals, and the positions that predict response tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from isogloss.data.chat import Encoded, pad, response_positions
from isogloss.languages import SOURCE
from isogloss.losses.topk import TopK
from isogloss.model.branches import layout, predictors
from isogloss.model.standardise import Statistics, standardised, statistics_of, unscaled
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import Signal


@dataclass(frozen=True)
class Sample:
    """One row of a batch; stage 1 sets neither language nor signal. Meanings are numbered from 0."""

    encoded: Encoded
    language: str = ""
    meaning: int = 0
    signal: Signal | None = None
    options: tuple[tuple[int, ...], ...] = ()
    """All answer options, end of turn included, if the signal has an informative distribution over them."""
    teacher_prompt: tuple[int, ...] = ()
    """The teacher's prompt, if the signal contains a teacher."""
    twin_prompt: tuple[int, ...] = ()
    """The English twin's prompt, if the signal depends on it."""

    @property
    def bare(self) -> bool:
        """True for a parallel-text sentence, which has no response."""
        return not self.encoded.response


class Ordered(Dataset):
    """Samples in training order, repeats included."""

    def __init__(self, samples: Sequence[Sample], order: Sequence[int]):
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Sample:
        return self.samples[self.order[number]]


INFORMED = 0.8
"""Upper limit of the target's entropy, as a share of ln n, the maximum for n options."""


def informed(options: Float[Tensor, " options"]) -> bool:
    """Return whether a distribution over options, as ln probabilities, is clearly not uniform.

    Otherwise only cross-entropy trains the row, as a near-uniform target carries no signal.
    """
    log_p = options.float().log_softmax(0)
    return float(-(log_p.exp() * log_p).sum()) < INFORMED * math.log(len(options))


def samples_of(rows: Sequence[Row], signals: Sequence[Signal]) -> list[Sample]:
    """Combine rows and signals into samples; meanings are renumbered without gaps."""
    numbers = {meaning: n for n, meaning in enumerate(dict.fromkeys(row.meaning for row in rows))}
    return [
        Sample(
            row.student,
            row.language,
            numbers[row.meaning],
            signal,
            row.options if signal.options is not None and informed(signal.options) else (),
            row.teacher_prompt if signal.teacher is not None else (),
            () if signal.twin is None and signal.options is None else row.twin_prompt,
        )
        for row, signal in zip(rows, signals, strict=True)
    ]


FEW = 8
"""Fewest twins from which mean and standard deviation are estimated. With fewer, instructions and bare
sentences share one estimate; with fewer of both together, vectors are not standardised."""


@dataclass(frozen=True)
class Twins:
    """The English twins, which are the targets of the hidden-state term.

    Attributes:
        vectors: The standardised vector of every meaning's English twin, in the order of their numbers.
        statistics: Statistics of the twins that are instructions (False) and bare sentences (True), separate
            because a chat template shifts every state after it. Rows of all languages are standardised with
            them, so the loss also penalises a constant offset of a language from English.
    """

    vectors: Float[Tensor, "meanings hidden"]
    statistics: Mapping[bool, Statistics]

    def standardise(
        self, pooled: Float[Tensor, "rows hidden"], bare: Sequence[bool]
    ) -> Float[Tensor, "rows hidden"]:
        kinds = torch.tensor(bare, device=pooled.device)[:, None]
        return torch.where(kinds, *(standardised(pooled, self.statistics[kind]) for kind in (True, False)))


def twins_of(samples: Sequence[Sample]) -> Twins | None:
    """Return the English twins of all meanings; None if the signals contain none, as in stage 1."""
    found = {
        s.meaning: (s.signal.twin, s.bare)
        for s in samples
        if s.signal is not None and s.signal.twin is not None
    }
    if not found:
        return None
    vectors = torch.stack([found[number][0] for number in range(len(found))])
    bare = [found[number][1] for number in range(len(found))]
    statistics = {}
    for kind in (False, True):
        own = vectors[torch.tensor([one == kind for one in bare])]
        enough = own if len(own) >= FEW else vectors
        statistics[kind] = statistics_of(enough) if len(enough) >= FEW else unscaled(vectors)
    made = Twins(vectors, statistics)
    return replace(made, vectors=made.standardise(vectors, bare))


@dataclass
class Options:
    """The answer options of a batch's rows, concatenated.

    Attributes:
        branch: The answer of its row that each token belongs to, as in `model.branches`.
        place: The position ID of each token, as if its answer alone followed the prompt.
        positions: Positions in the flattened batch that predict option tokens, each once.
        ids: The option tokens.
        where: Index into `positions` of the position that predicts each option token.
        own: Indices of the option tokens that are their row's response, if that is an option.
        lengths: Number of tokens of each option.
        sizes: Number of options of each row that has any.
        targets: ln probability of each option under the reference model, in the order of `lengths`.
    """

    branch: Tensor
    place: Tensor
    positions: Tensor
    ids: Tensor
    where: Tensor
    own: Tensor
    lengths: list[int]
    sizes: list[int]
    targets: Tensor

    def to(self, device: torch.device) -> "Options":
        return _moved(self, device)


@dataclass
class Batch:
    """A collated batch of B rows, padded on the right to W tokens, with R response tokens in all."""

    ids: Tensor
    """(B, W): prompt, response, and the other options of an answer set."""
    mask: Tensor
    """(B, W): 1 for a token, 0 for padding."""
    prompt_mask: Tensor
    """(B, W): 1 on the prompt. Only the self-check reads it; the loss uses `positions`."""
    instruction_mask: Tensor
    """(B, W): 1 on the instruction itself, not on BOS or the template."""
    positions: Tensor
    """(R,): the position in the flattened batch that predicts each response token."""
    response: Tensor
    """(R,): the response tokens. The loss covers only these, so there are no labels to mask."""
    languages: list[str]
    bare: list[bool]
    """True for rows that are sentences without a response, used only by the hidden-state term."""
    meanings: Tensor
    """(B,): the index of each row's English twin among the twins."""
    teacher_mask: Tensor
    """(R,): which response tokens the teacher has scored."""
    replay_mask: Tensor
    """(R,): which of those belong to English replay rows."""
    option_mask: Tensor
    """(R,): which response tokens belong to an answer option and are scored with the options."""
    teacher: Tensor | TopK | None
    """The teacher's hidden states or top-k tokens for each token of `teacher_mask`."""
    options: Options | None = None

    def to(self, device: torch.device) -> "Batch":
        return _moved(self, device)


def _moved(batch: Any, device: torch.device) -> Any:
    """Copy a dataclass with everything that lies on a device moved to another."""
    there = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor | TopK | Options)}
    return replace(batch, **{name: value.to(device) for name, value in there.items()})


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Pad samples into a batch, with the positions that predict response tokens."""
    encoded = [sample.encoded for sample in samples]
    # The response comes first, so its positions do not depend on the options after it.
    others = [[one for one in s.options if one != s.encoded.response] for s in samples]
    texts = [[*e.prompt, *e.response, *chain(*more)] for e, more in zip(encoded, others, strict=True)]
    ids, mask = pad(texts, pad_id)
    instructions = [list(map(int, e.instruction_mask)) or [1] * len(e.prompt) for e in encoded]
    starts, lengths = [len(e.prompt) for e in encoded], [len(e.response) for e in encoded]
    signals = [sample.signal for sample in samples]
    known = [signal for signal in signals if signal is not None]
    said = [signal.teacher for signal in known if signal.teacher is not None]
    teacher_mask = torch.cat([_teacher_mask(s, length) for s, length in zip(signals, lengths, strict=True)])
    english = torch.tensor([sample.language == SOURCE for sample in samples])
    return Batch(
        ids=ids,
        mask=mask,
        prompt_mask=(torch.arange(ids.shape[1])[None] < torch.tensor(starts)[:, None]).long(),
        instruction_mask=pad(instructions, 0, width=ids.shape[1])[0],
        positions=response_positions(starts, lengths, ids.shape[1]),
        response=torch.tensor([token for e in encoded for token in e.response], dtype=torch.long),
        languages=[sample.language for sample in samples],
        bare=[sample.bare for sample in samples],
        meanings=torch.tensor([sample.meaning for sample in samples]),
        teacher_mask=teacher_mask,
        replay_mask=teacher_mask & english.repeat_interleave(torch.tensor(lengths)),
        option_mask=torch.tensor([s.encoded.response in s.options for s in samples]).repeat_interleave(
            torch.tensor(lengths)
        ),
        teacher=_joined(said),
        options=_options(samples, others, ids.shape[1]) if any(s.options for s in samples) else None,
    )


def _options(samples: Sequence[Sample], others: Sequence[Sequence[tuple[int, ...]]], width: int) -> Options:
    branches, places, ids, where, own, lengths, targets = [], [], [], [], [], [], []
    positions: dict[int, int] = {}
    for number, (sample, more) in enumerate(zip(samples, others, strict=True)):
        prompt, response = len(sample.encoded.prompt), sample.encoded.response
        answers = [response, *more]
        branch, place, starts = layout(prompt, [len(answer) for answer in answers])
        branches.append(branch)
        places.append(place)
        for option in sample.options:
            start = starts[answers.index(option)]
            if option == response:
                own += range(len(ids), len(ids) + len(option))
            for one in predictors(prompt, start, len(option)):
                where.append(positions.setdefault(number * width + one, len(positions)))
            ids += option
            lengths.append(len(option))
        if sample.options:
            assert sample.signal is not None and sample.signal.options is not None
            targets.append(sample.signal.options)
    return Options(
        branch=pad(branches, -1)[0],
        place=pad(places, 0)[0],
        positions=torch.tensor(list(positions)),
        ids=torch.tensor(ids),
        where=torch.tensor(where),
        own=torch.tensor(own, dtype=torch.long),
        lengths=lengths,
        sizes=[len(sample.options) for sample in samples if sample.options],
        targets=torch.cat(targets).float(),
    )


def _teacher_mask(signal: Signal | None, length: int) -> Tensor:
    """Return which tokens of a response the teacher has scored."""
    if signal is None or signal.teacher is None:
        return torch.zeros(length, dtype=torch.bool)
    return torch.ones(length, dtype=torch.bool) if signal.covered is None else signal.covered


def _joined(said: Sequence[Tensor | TopK]) -> Tensor | TopK | None:
    """Concatenate the teacher's signals of all rows, which are all of one kind."""
    if not said:
        return None
    tops = [one for one in said if isinstance(one, TopK)]
    return TopK.cat(tops) if tops else torch.cat([one for one in said if isinstance(one, Tensor)])
