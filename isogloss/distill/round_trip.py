"""More rows where there are few: the model translates English itself, and keeps what it can translate back.

Flow: parallel examples, read as translations either way → carriers learn them → English items are drawn in
each language → back in English → what comes back unchanged is an example more.

Back-translation (Sennrich et al. 2016, arXiv:1511.06709), filtered by its own way back. No text in a language
is needed but that of the parallel examples: English is what there is more of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from isogloss.config import Distill
from isogloss.cost import Stage, forward_flops
from isogloss.data.chat import Encoded, encode, encode_prompt
from isogloss.data.examples import ParallelExample, Turn
from isogloss.distill.rows import Row
from isogloss.distill.trainer import chunk_size
from isogloss.generate import answers, in_batches
from isogloss.languages import SOURCE, resolve
from isogloss.model import head, most_tokens, pad_id, response_states
from isogloss.tree.carrier import Carrier

SEAM = "\n\n"
"""Stands between an instruction and its response where both are translated in one."""
TOGETHER = 256
"""Rows that are translated at a time."""


def translator(settings: Distill) -> Distill:
    """The settings under which carriers learn to translate: cross-entropy alone, every node on the path."""
    return settings.model_copy(
        update={
            "ce": 1.0, "kl": 0.0, "hidden": 0.0, "retain": 0.0, "on_policy": 0.0, "prune": 0.0,
            "signal": "hidden", "epochs": settings.fill_epochs,
        }
    )  # fmt: skip


def whole(turn: Turn, responses: bool) -> str | None:
    """A turn as one text, with its response or without; None where it could not be taken apart again."""
    if not responses:
        return turn.instruction
    taken = turn.response is not None and SEAM not in turn.response
    return f"{turn.instruction}{SEAM}{turn.response}" if taken else None


def apart(text: str, responses: bool) -> Turn | None:
    """A text of `whole` as a turn; None where a part is missing."""
    if not responses:
        return Turn(text) if text else None
    instruction, _, response = (part.strip() for part in text.rpartition(SEAM))
    return Turn(instruction, response) if instruction and response else None


def asked(code: str, text: str) -> str:
    """The instruction that has a text written in a language."""
    return f"{resolve(code).name}:{SEAM}{text}"


def translation_rows(
    examples: Iterable[ParallelExample],
    codes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    responses: bool,
    limit: int,
) -> list[Row]:
    """Every turn in these languages as two rows, from English and into it, on the language's path.

    Args:
        responses: Whether a turn's response is translated with it.
        limit: Longest prompt in tokens; rows above it are left out.
    """
    rows = []
    for number, example in enumerate(examples):
        for code in codes:
            if code not in example.turns:
                continue
            english, own = (whole(example.turns[c], responses) for c in (SOURCE, code))
            if english is None or own is None:
                continue
            twin = encode_prompt(tokenizer, example.turns[SOURCE].instruction)
            for to, text, answer in ((code, english, own), (SOURCE, own, english)):
                student = encode(tokenizer, asked(to, text), answer)
                if len(student.prompt) <= limit:
                    name = f"{example.id}/{code}/to {to}"
                    rows.append(Row(name, code, number, student, student.prompt, twin))
    return rows


def drawn(
    pool: Sequence[ParallelExample], wanted: Mapping[str, int], tries: float, *, responses: bool
) -> list[tuple[str, ParallelExample, str]]:
    """Which English is put into which language, and how it reads: each language takes other examples.

    Args:
        wanted: How many examples each language lacks.
        tries: How many are drawn for one that is wanted, as far as the pool reaches.
    """
    work, start = [], 0
    for code, count in wanted.items():
        most = round(count * tries)
        for n in range(min(most, len(pool))):
            example = pool[(start + n) % len(pool)]
            if (text := whole(example.turns[SOURCE], responses)) is not None:
                work.append((code, example, text))
        start += most
    return work


def translated(
    carrier: Carrier,
    tokenizer: PreTrainedTokenizerBase,
    pool: Sequence[ParallelExample],
    wanted: Mapping[str, int],
    *,
    tries: float,
    responses: bool,
    longest: int,
    cost: Stage,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[ParallelExample]:
    """English examples in the languages that lack some, as far as they come back word for word.

    Args:
        carrier: Has learned `translation_rows`.
        longest: Longest translation in tokens.
    """
    work = drawn(pool, wanted, tries, responses=responses)
    codes = [code for code, _, _ in work]
    said = answers(
        carrier.model, tokenizer, [asked(code, text) for code, _, text in work],
        languages=codes, carrier=carrier, batch=TOGETHER, max_new_tokens=longest, progress=progress,
    )  # fmt: skip
    back = [encode(tokenizer, asked(SOURCE, own), text) for own, (_, _, text) in zip(said, work, strict=True)]
    kept = _exact(carrier, codes, back, pad_id(tokenizer))
    made: list[ParallelExample] = []
    left = dict(wanted)
    for (code, example, _), own, exact in zip(work, said, kept, strict=True):
        if exact and left[code] and (turn := apart(own, responses)) is not None:
            turns = {SOURCE: example.turns[SOURCE], code: turn}
            made.append(ParallelExample(f"{example.id}~{code}", example.task, turns))
            left[code] -= 1
    generated = sum(len(ids) for ids in tokenizer(said)["input_ids"])
    prompted = sum(len(encode_prompt(tokenizer, asked(code, text))) for code, _, text in work)
    read = sum(len(one.prompt) + len(one.response) for one in back)
    cost.tokens_generated += generated
    cost.tokens_forwarded += prompted + generated + read
    model = carrier.model.get_base_model()
    cost.flops += forward_flops(model, prompted + generated, generated)
    cost.flops += forward_flops(model, read, sum(len(one.response) for one in back))
    return made


@torch.no_grad()
def _exact(carrier: Carrier, codes: Sequence[str], rows: Sequence[Encoded], filler: int) -> list[bool]:
    """Whether each prompt is answered by its response: every token is the likeliest behind those before."""
    texts = [[*row.prompt, *row.response] for row in rows]
    order = sorted(range(len(rows)), key=lambda number: len(texts[number]))
    found = [False] * len(rows)
    for some in in_batches(order, texts, TOGETHER, most_tokens(carrier.model)):
        with carrier.on([codes[number] for number in some]) as model:
            states = response_states(
                model, [rows[n].prompt for n in some], [rows[n].response for n in some], filler
            )
            flat = torch.cat(list(states))
            likeliest = torch.cat([head(model, part).argmax(-1) for part in flat.split(chunk_size(model))])
        lengths = [len(rows[number].response) for number in some]
        for number, one in zip(some, likeliest.split(lengths), strict=True):
            found[number] = tuple(one.tolist()) == tuple(rows[number].response)
    return found
