"""Zero-shot transfer: evaluate languages without training data through each node of a trained tree.

A language without training data uses its family's node, or the root if the tree has no such family. To see
whether the family helps, the same items are also evaluated with the reference model alone, the root, and the
nodes of the other families, which were trained on unrelated languages.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import ROOT, Tree, family_name
from isogloss.config import Evaluate
from isogloss.evaluate import retrieval, runner
from isogloss.evaluate.estimates import by_id
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.statistics import Estimate, bootstrap_mean, over_tasks, resampled_means
from isogloss.languages import SOURCE
from isogloss.model.standardise import statistics_of
from isogloss.progress import Progress

NOTHING = "nothing"
"""The reference model with adapters off."""
MEASURES = ("consistency", "retrieval")


@dataclass(frozen=True)
class Reading:
    """Results of a suite in one language through one node.

    Attributes:
        through: A node's name, or `NOTHING`.
        kind: `nothing`, `root`, `family` (the language's own) or `other family`.
        hits: Scores by measure and item ID or sentence index; all readings have the same items.
    """

    suite: str
    language: str
    through: str
    kind: str
    hits: Mapping[str, Mapping[str, float]]

    def mean(self, measure: str) -> float:
        return fmean(self.hits[measure].values())


@dataclass(frozen=True)
class Transfer:
    """Benefit of a language's own family in one suite and measure; differences are over the same items.

    Attributes:
        nothing: Mean with the reference model alone.
        root: Mean through the root.
        family: Mean through its family's node; None if the tree lacks its family.
        others: Mean over the nodes of the other families; None if there are none.
        over_root: Family minus root; without a family, the other families minus the root.
        over_others: Family minus the mean of the others; None if either is missing.
    """

    suite: str
    language: str
    measure: str
    nothing: float
    root: float
    family: float | None
    others: float | None
    over_root: Estimate
    over_others: Estimate | None


@contextmanager
def read_through(adapters: TreeLora, language: str, node: str) -> Iterator[TreeLora]:
    """Route a language's texts through the path from the root to a node while the context is open."""
    before = adapters.routing.tree
    adapters.routing.tree = replace(before, through={language: node})
    try:
        yield adapters
    finally:
        adapters.routing.tree = before


def nodes_for(tree: Tree, language: str) -> dict[str, str]:
    """Return the nodes to evaluate a language through, by name, with the `kind` of each."""
    own = family_name(language)
    families = [node.name for node in tree.nodes if node.level == "family" and node.rank]
    return {ROOT: "root"} | {name: "family" if name == own else "other family" for name in families}


def readings(
    plain: retrieval.Model,
    adapters: TreeLora,
    suite: SuiteData,
    languages: Sequence[str],
    settings: Evaluate,
    seed: int,
    progress: Progress,
) -> list[Reading]:
    """Evaluate every language of a suite through every node.

    All readings compare sentences at the same layer, the best one for the reference model on these languages;
    each reading is standardised with its own statistics.
    """
    aligned = retrieval.Model(plain.model, plain.tokenizer, adapters)
    languages = [code for code in languages if code in suite.sentences or _asked(suite, code).items]
    work, done = sum(1 + len(nodes_for(adapters.tree, code)) for code in languages), 0
    english = runner.english_answers(plain, suite, settings, _silent).texts if suite.items else []
    answered = {item.id: text for item, text in zip(runner.twinned(suite), english, strict=True)}
    retriever = retrieval.retriever(plain, plain, _only(suite, languages), settings, _silent)
    if retriever is not None:  # the raw cosine is not reported, and may need a higher layer
        retriever = replace(retriever, raw_layer=retriever.layer)
    made = []
    for code in languages:
        asked = _asked(_only(suite, [code]), code)
        own = [answered[item.id] for item in runner.twinned(asked)]
        for node, kind in {NOTHING: NOTHING, **nodes_for(adapters.tree, code)}.items():
            if node == NOTHING:
                hits = _hits(plain, asked, code, own, retriever, settings, seed)
            else:
                with read_through(adapters, code, node):
                    by = _by_own(retriever, aligned, asked, code, settings)
                    hits = _hits(aligned, asked, code, own, by, settings, seed)
            made.append(Reading(suite.name, code, node, kind, hits))
            progress(done := done + 1, work)
    return made


def transfers(found: Sequence[Reading], seed: int) -> list[Transfer]:
    """Compute the benefit of each language's family from all readings."""
    made = []
    for (suite, code), of in _by_suite_and_language(found).items():
        for measure in MEASURES:
            kinds = (NOTHING, "root", "family", "other family")
            nothing, root, family, others = (_mean_hits(of, kind, measure) for kind in kinds)
            if not nothing or not root or not (family or others):
                continue
            made.append(
                Transfer(
                    suite,
                    code,
                    measure,
                    fmean(nothing.values()),
                    fmean(root.values()),
                    fmean(family.values()) if family else None,
                    fmean(others.values()) if others else None,
                    _difference(family or others, root, seed),
                    _difference(family, others, seed) if family and others else None,
                )
            )
    return made


def over_languages(
    found: Sequence[Reading], languages: Sequence[str], measure: str, seed: int
) -> dict[str, Estimate]:
    """Return `over_root` and `over_others` averaged over some languages, with suites weighted equally.

    An item is drawn together with all languages that have it. For languages without a family in the tree,
    `over_root` uses the other families, and `over_others` is undefined.
    """
    chosen = [one for one in found if one.language in languages and measure in one.hits]
    differences: dict[str, dict[str, dict[str, dict[str, float]]]] = {"over_root": {}, "over_others": {}}
    for (suite, code), of in _by_suite_and_language(chosen).items():
        root, family, others = (_mean_hits(of, kind, measure) for kind in ("root", "family", "other family"))
        if root and (family or others):
            differences["over_root"].setdefault(suite, {})[code] = _minus(family or others, root)
        if family and others:
            differences["over_others"].setdefault(suite, {})[code] = _minus(family, others)
    rng = np.random.default_rng(seed)
    return {
        name: over_tasks([[resampled_means(table, rng) for table in by_suite.values()]])[""]
        for name, by_suite in differences.items()
        if by_suite
    }


def _hits(
    subject: retrieval.Model,
    suite: SuiteData,
    code: str,
    english: Sequence[str],
    retriever: retrieval.Retriever | None,
    settings: Evaluate,
    seed: int,
) -> dict[str, dict[str, float]]:
    side = runner.evaluate_side(subject, suite, [code], english, retriever, settings, seed, _silent)
    return {
        name: by_id(side.hits[name][code], side.ids.get(name, {}).get(code))
        for name in MEASURES
        if code in side.hits.get(name, {})
    }


def _by_own(
    retriever: retrieval.Retriever | None,
    subject: retrieval.Model,
    suite: SuiteData,
    code: str,
    settings: Evaluate,
) -> retrieval.Retriever | None:
    """Replace the statistics of a language by the subject's own; English stays the reference model's."""
    if retriever is None or retriever.statistics is None or code not in suite.layer_sentences:
        return retriever
    layer, texts = retriever.layer, suite.layer_sentences[code]
    own = statistics_of(retrieval.embed(subject, texts, code, [layer], settings.batch_size)[layer])
    return replace(retriever, statistics={**retriever.statistics, code: own})


def _only(suite: SuiteData, languages: Sequence[str]) -> SuiteData:
    """Restrict the suite's sentences to some languages and English."""
    kept = (SOURCE, *languages)
    return replace(
        suite,
        sentences={code: suite.sentences[code] for code in kept if code in suite.sentences},
        layer_sentences={code: suite.layer_sentences[code] for code in kept if code in suite.layer_sentences},
    )


def _asked(suite: SuiteData, code: str) -> SuiteData:
    """Restrict the suite to items that have both the language and English."""
    items = tuple(item for item in suite.items if code in item.turns and SOURCE in item.turns)
    return replace(suite, items=items)


def _by_suite_and_language(readings: Sequence[Reading]) -> dict[tuple[str, str], list[Reading]]:
    found: dict[tuple[str, str], list[Reading]] = {}
    for one in readings:
        found.setdefault((one.suite, one.language), []).append(one)
    return found


def _mean_hits(readings: Sequence[Reading], kind: str, measure: str) -> dict[str, float]:
    rows = [one.hits[measure] for one in readings if one.kind == kind and measure in one.hits]
    return {id: fmean(row[id] for row in rows) for id in rows[0]} if rows else {}


def _minus(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {id: hit - other[id] for id, hit in one.items()}


def _difference(one: Mapping[str, float], other: Mapping[str, float], seed: int) -> Estimate:
    return bootstrap_mean(list(_minus(one, other).values()), seed=seed)


def _silent(done: int, of: int) -> None:
    """Ignore progress within a reading, which is too short to report."""
