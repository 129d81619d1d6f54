"""In-context gain: how much more often prompted answers agree with the model's own English answer.

Distillation cannot do better than the prompt does in context (OPCD, arXiv:2602.12275), so the gain is
measured before training: the reference model answers held-out items with the bare instruction and with each
privileged prompt in front of it, and both are compared with its own answer to the English twin. If prompted
minus bare is not above 0, there is nothing to distil.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isogloss.adapters.generate import answers
from isogloss.adapters.tree import Tree
from isogloss.data.examples import Turn
from isogloss.data.reading import read_answer
from isogloss.evaluate.items import Item
from isogloss.evaluate.statistics import Estimate, bootstrap_mean
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import NodeTexts, privileged_text

VIEWS: Mapping[str, tuple[str, ...]] = {
    "bare": (),
    "twin": ("twin",),
    "texts": ("texts",),
    "texts + twin": ("texts", "twin"),
}
"""What precedes the instruction in each view; never an answer, which would reveal the result."""


@dataclass(frozen=True)
class Gain:
    """Agreement with the English answer for one view, task and language.

    Attributes:
        agreement: Share of items answered as in English.
        gain: Agreement minus that of the bare instruction, over the same items.
    """

    view: str
    task: str
    language: str
    items: int
    agreement: float
    gain: Estimate


def prompted(item: Item, code: str, reads: Sequence[str], texts: NodeTexts, tree: Tree) -> str | None:
    """Return the privileged prompt of an item; None for the bare instruction."""
    if not reads:
        return None
    twin = Turn(item.turns[SOURCE].instruction) if "twin" in reads else None
    path = tree.path(code) if "texts" in reads else ()
    said = texts if "texts" in reads else NodeTexts(root="")
    return privileged_text(said, path, item.task, twin, answer=False)


def gains(
    model,
    tokenizer,
    items: Sequence[Item],
    languages: Sequence[str],
    texts: NodeTexts,
    tree: Tree,
    *,
    batch: int = 64,
    max_new_tokens: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Gain]:
    """Compute every view's agreement and gain by task and language, with intervals over paired items.

    Args:
        model: The reference model, adapters off.
        items: Held-out items. Those without English are ignored; languages that an item lacks are skipped.
    """
    items = [item for item in items if SOURCE in item.turns]
    # By index: item IDs may repeat across suites.
    places = [(n, code) for code in languages for n, item in enumerate(items) if code in item.turns]
    asked = [(items[n], code) for n, code in places]
    limit = max([max_new_tokens, *(item.longest or 0 for item in items)])
    work, done = len(items) + len(asked) * len(VIEWS), 0

    def ask(pairs: Sequence[tuple[Item, str]], systems: Sequence[str | None]) -> list[str]:
        nonlocal done
        before, done = done, done + len(pairs)
        return answers(
            model,
            tokenizer,
            [item.turns[code].instruction for item, code in pairs],
            systems=list(systems),
            batch=batch,
            max_new_tokens=limit,
            progress=lambda so_far, of: progress(before + so_far, work),
        )

    english = ask([(item, SOURCE) for item in items], [None] * len(items))
    reference = [read_answer(item, SOURCE, text) for item, text in zip(items, english, strict=True)]
    agrees: dict[str, list[bool]] = {}
    for view, reads in VIEWS.items():
        systems = [prompted(item, code, reads, texts, tree) for item, code in asked]
        found = ask(asked, systems)
        agrees[view] = [
            reference[n] is not None and read_answer(items[n], code, text) == reference[n]
            for (n, code), text in zip(places, found, strict=True)
        ]
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (item, code) in enumerate(asked):
        groups.setdefault((item.task, code), []).append(number)
    bare = agrees["bare"]
    return [
        Gain(
            view,
            task,
            code,
            len(numbers),
            sum(agrees[view][n] for n in numbers) / len(numbers),
            bootstrap_mean([float(agrees[view][n]) - float(bare[n]) for n in numbers], seed=seed),
        )
        for view in VIEWS
        for (task, code), numbers in groups.items()
    ]
