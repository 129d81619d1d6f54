"""Ablation of stage 2: variants compared on one reference model per seed.

Flow: one run per seed for stage 1 → its tuned model copied into one run per variant and seed → rows; over the
seeds, each variant against the first → table, JSON. Every run is an ordinary run folder, so a stopped
ablation resumes; several runs can execute in parallel, each in a separate process.
"""

import json
import os
import shutil
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from scipy.stats import ttest_1samp

from isogloss.adapters.fit import refuse_misfit
from isogloss.config import KL_ONLY, SIMILARITY_ONLY, Config, Distill, dump_config, with_overrides
from isogloss.errors import ConfigError, RunError
from isogloss.evaluate.compare import compare_groups
from isogloss.evaluate.statistics import holm
from isogloss.files import read_json, write_json
from isogloss.pipeline.evaluation import run_evaluate
from isogloss.pipeline.folder import ProgressReporter, Run, open_run
from isogloss.pipeline.logging import quiet
from isogloss.pipeline.stages import run_distill, run_tune
from isogloss.report.page import write_report


def as_usual(*names: str) -> tuple[str, ...]:
    """Return overrides that reset stage 2 settings to their defaults.

    Needed because settings that a variant leaves without effect are rejected.
    """
    usual = Distill().model_dump(mode="json")
    return tuple(f"distill.{name}={json.dumps(usual[name])}" for name in names)


NO_HIDDEN = ("distill.similarity_weight=0", *as_usual(*SIMILARITY_ONLY))
NO_KL = ("distill.kl_weight=0", *as_usual(*KL_ONLY, "teacher_view"))
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "families": ("languages.tree=families",),
    "random": ("languages.tree=random",),
    "flat": ("languages.tree=flat",),
    "shared": ("languages.tree=shared",),
    "no-hidden": NO_HIDDEN,
    "no-kl": NO_KL,
    # The obvious baseline: cross-entropy on the same rows, one adapter for all languages.
    "sft": ("languages.tree=shared", *NO_KL, *NO_HIDDEN),
    "with-kl": ("distill.kl_weight=1",),
    "no-texts": ("distill.teacher_reads=[twin,answer]",),
    "no-english": ("distill.teacher_reads=[texts]", *as_usual("teacher_view")),
    "no-replay": ("distill.replay_fraction=0",),
}
"""Overrides of each variant."""
READINGS = ("no-texts", "no-english")
"""Variants of the teacher's prompt, which reach the student only through the KL term."""
CHANGES = ("no-", "with-")
"""Prefixes of variants that remove or add a part of the method."""
SCORED = {"distill.kl_weight=0": "replay_fraction", "distill.replay_fraction=0": "kl_weight"}
"""From an override that removes a use of the teacher's output to the weight of the other use."""
OPPOSITES = {"no-kl": "with-kl", "with-kl": "no-kl"}
FEWEST = 3
"""Minimum number of seeds for a t test."""
MEASURES = ("alignment", "consistency", "retrieval", "accuracy", "fidelity", "retention")
"""The first that a suite has is its main measure."""


@dataclass(frozen=True)
class Variant:
    """A named set of overrides.

    Attributes:
        items: Number of parallel items per language, if set; it is also the name's suffix.
        against: Name of the variant to compare with; if None, the first with the same number of items.
    """

    name: str
    overrides: tuple[str, ...]
    items: int | None = None
    against: str | None = None

    @property
    def base(self) -> str:
        """The name without the number of items."""
        return self.name if self.items is None else self.name.removesuffix(f"@{self.items}")


def parse(text: str) -> Variant:
    """Parse the name of a known variant, or a custom one: `NAME: a.b=c d.e=f`.

    Raises:
        ConfigError: The name is unknown, the text is malformed, or a setting does not belong to stage 2.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not colon:
        if name not in VARIANTS:
            raise ConfigError(
                f"--variant {name}: unknown; choose from {', '.join(VARIANTS)}, or write your own as "
                "'NAME: a.b=c d.e=f'"
            )
        return Variant(name, VARIANTS[name])
    overrides = tuple(rest.split())
    for override in overrides:
        if not override.startswith(("distill.", "languages.")):
            raise ConfigError(
                f"--variant {text}: {override} changes stage 1 or the evaluation, which variants share; use "
                "settings that begin with distill. or languages."
            )
    if not name or not overrides or "/" in name or name == "seed":  # whose folders are stage 1's
        raise ConfigError(f"--variant {text}: write it as 'NAME: a.b=c d.e=f'")
    return Variant(name, overrides)


def with_items(variants: Sequence[Variant], items: Sequence[int]) -> list[Variant]:
    """Return each variant with each number of parallel items per language, for a learning curve."""
    if not items:
        return list(variants)
    return [
        Variant(f"{variant.name}@{n}", (*variant.overrides, *_items(n)), items=n)
        for n in items
        for variant in variants
    ]


def _items(n: int | None) -> tuple[str, ...]:
    if n is None:
        return ()
    return (f"languages.items={{high: {n}, middle: {n}, low: {n}}}", "languages.amounts={}")


def resolved(config: Config, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants adapted to these settings.

    Without a KL term, the teacher's prompt does not reach the student. `READINGS` then include the overrides
    of `with-kl` and are compared with it; it is added if missing.

    Raises:
        ConfigError: A variant equals the settings or an earlier variant, or has its name.
    """
    found: list[Variant] = []
    # Another teacher's prompt also reaches the student through the responses that the teacher writes.
    unheard = not config.distill.kl_weight and config.distill.teacher.type == "self"
    for variant in variants:
        if unheard and variant.base in READINGS:
            told = Variant("with-kl", VARIANTS["with-kl"])
            (told,) = with_items([told], () if variant.items is None else [variant.items])
            if told not in (*variants, *found):
                found.append(told)
            variant = replace(variant, overrides=(*told.overrides, *variant.overrides), against=told.name)
        if NO_HIDDEN[0] in variant.overrides and config.parallel_text:
            variant = replace(variant, overrides=(*variant.overrides, _without_bare(config)))
        if _scores_nothing(config, variant.overrides):
            variant = replace(variant, overrides=(*variant.overrides, *as_usual("signal", "top_k")))
        found.append(variant)
    _refuse_alike(config, found)
    return found


def _scores_nothing(config: Config, overrides: Sequence[str]) -> bool:
    """Return whether these overrides switch off one of KL and replay, and the other is off too."""
    values = {name: getattr(config.distill, name) for name in SCORED.values()}
    said = {name: value for name, _, value in (one.partition("=") for one in overrides)}
    left = [said.get(f"distill.{name}", str(value)) for name, value in values.items()]
    return any(one in overrides for one in SCORED) and all(value in ("0", "0.0") for value in left)


def _without_bare(config: Config) -> str:
    """Drop bare sentences, which have no loss without the hidden-state term; keep translation pairs."""
    kept = [
        source.model_dump(mode="json") | {"use": ["translation"]}
        for source in config.parallel_text
        if "translation" in source.use
    ]
    return f"parallel_text={json.dumps(kept)}"


def _refuse_alike(config: Config, variants: Sequence[Variant]) -> None:
    def trained(*overrides: str) -> str:
        return dump_config(with_overrides(config, overrides))

    seen: dict[str, str] = {}
    for variant in variants:
        if variant.name in seen.values():
            raise ConfigError(f"--variant {variant.name}: two variants have this name; rename one")
        settings = trained(*variant.overrides)
        # A tree variant may equal the settings, as others are compared with it.
        if variant.base.startswith(CHANGES) and settings == trained(*_items(variant.items)):
            override = variant.overrides[0]
            other = OPPOSITES.get(variant.base) or f"another {override.partition('=')[0]} by --set"
            raise ConfigError(
                f"--variant {variant.name}: the settings already have {override}; use {other}, or leave it "
                "out"
            )
        if settings in seen:
            raise ConfigError(f"--variant {variant.name}: same settings as {seen[settings]}; leave one out")
        seen[settings] = variant.name


@dataclass(frozen=True)
class Ablation:
    """Results of an ablation.

    Attributes:
        rows: One per suite, variant and seed.
        differences: One per suite, group of languages ("all", "low") and variant except the first (of its
            number of items): difference of the suite's main measure from the variant compared with, mean
            over seeds. `p` is over items (would other items show it too?), `p_seeds` over seeds (paired t
            test; None with fewer than `FEWEST` seeds); both are corrected for the suite's `comparisons`
            (Holm 1979).
    """

    rows: list[dict]
    differences: list[dict]


def ablate(
    config: Config,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    reporter: ProgressReporter,
    *,
    jobs: int = 1,
) -> Ablation:
    """Run what is missing; `folder/ablation.json` grows as runs finish.

    Args:
        jobs: Number of parallel runs. Parallel runs share the cores or the GPU, and report only when done.

    Raises:
        ConfigError: See `resolved`; or a variant's adapters do not fit the model.
        RunError: One of several processes was killed.
    """
    variants = resolved(config, variants)
    for variant in variants:
        refuse_misfit(_variant(config, variant.overrides, 0, folder))
    found: dict[tuple[int, str], list[dict]] = {}
    with _calling(jobs, reporter) as each:
        for _ in each(_tune, [(config, seed, folder) for seed in seeds]):
            pass
        calls = [(config, variant, seed, folder) for seed in seeds for variant in variants]
        for variant, seed, measured in each(_measured, calls):
            found[seed, variant.name] = measured
            if jobs > 1:
                reporter.say(f"{variant.name}, seed {seed}: done")
            rows = [row for seed in seeds for v in variants for row in found.get((seed, v.name), ())]
            _write(config, Ablation(rows, []), folder)
    measures = {row["suite"]: [row["measure"]] for row in rows if row["measure"]}
    found_differences = _differences(config, variants, seeds, folder, measures)
    done = Ablation(rows, corrected(with_seeds(found_differences, rows)))
    _write(config, done, folder)
    return done


Each = Callable[[Callable[..., Any], Sequence[tuple]], Iterator[Any]]
"""Calls a function with each tuple of arguments and yields results as calls finish."""


@contextmanager
def _calling(jobs: int, reporter: ProgressReporter) -> Iterator[Each]:
    """Yield an `Each`: sequential in this process with the caller's reporter, or in `jobs` processes."""
    if jobs == 1:
        yield lambda function, calls: (function(*call, reporter) for call in calls)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:

        def each(function: Callable[..., Any], calls: Sequence[tuple]) -> Iterator[Any]:
            for one in as_completed([pool.submit(function, *call, ProgressReporter()) for call in calls]):
                yield one.result()

        try:
            yield each
        except BrokenProcessPool:
            raise RunError(
                f"a run's process was killed, possibly for lack of memory; --jobs {jobs - 1} needs less and "
                "resumes from here"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(jobs: int) -> None:
    """Initialise a worker: quiet, with its share of the cores, and exiting at once on SIGINT."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    quiet()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def _tune(config: Config, seed: int, folder: Path, reporter: ProgressReporter) -> None:
    """Run stage 1 of a seed, shared by its variants."""
    run_tune(open_run(_variant(config, (), seed, folder / f"seed-{seed}"), reporter))


def _measured(
    config: Config, variant: Variant, seed: int, folder: Path, reporter: ProgressReporter
) -> tuple[Variant, int, list[dict]]:
    """Run stage 2 of a variant and evaluate it; return the variant, the seed and its rows."""
    run = open_run(_variant(config, variant.overrides, seed, folder / f"{variant.name}-{seed}"), reporter)
    if not run.tuned.exists():
        first, part = folder / f"seed-{seed}", run.folder / "tuned.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(first / run.tuned.name, part)
        shutil.copy(first / "selection.jsonl", run.folder)
        part.rename(run.tuned)
    reporter.say(f"{variant.name}, seed {seed}")
    run_distill(run)
    run_evaluate(run, folder / f"seed-{seed}" / "before")
    write_report(run.folder)
    return variant, seed, _rows(run, variant, seed)


def _write(config: Config, done: Ablation, folder: Path) -> None:
    written = {
        "schema": 1,
        "settings": dump_config(config),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "rows": done.rows,
        "differences": done.differences,
    }
    write_json(folder / "ablation.json", written)


def _differences(
    config: Config,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    measures: Mapping[str, Sequence[str]],
) -> list[dict]:
    """Return each variant's difference from its comparison, over all and over low-resource languages."""
    found = []
    for variant in variants:
        first = next(
            one for one in variants if variant.against in (None, one.name) and one.items == variant.items
        )
        if variant == first:
            continue
        ours, theirs = ([folder / f"{one.name}-{seed}" for seed in seeds] for one in (variant, first))
        for group, codes in (("all", None), ("low", _low(config))):
            for one in compare_groups(ours, theirs, codes=codes, measures=measures):
                about = {"suite": one.suite, "variant": variant.name, "against": first.name}
                found.append({**about, "languages": group, "measure": one.measure, **asdict(one.mean)})
    return found


def _paired_p(apart: Sequence[float]) -> float:
    found: Any = ttest_1samp(apart, 0)
    return float(found.pvalue)


def with_seeds(differences: Sequence[dict], rows: Sequence[Mapping]) -> list[dict]:
    """Add `p_seeds` to each difference: a paired t test over seeds of the means over languages."""

    def by_seed(one: Mapping, variant: str) -> dict[int, float]:
        of = [row for row in rows if (row["suite"], row["variant"]) == (one["suite"], variant)]
        means = {row["seed"]: row["low"] for row in of}
        if one["languages"] == "all":
            means = {row["seed"]: statistics.fmean(row["languages"].values()) for row in of}
        return means

    found = []
    for one in differences:
        ours, theirs = by_seed(one, one["variant"]), by_seed(one, one["against"])
        pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        p = None
        if len(pairs) >= FEWEST:
            apart = [a - b for a, b in pairs]
            # Without variance, t is undefined.
            p = _paired_p(apart) if len(set(apart)) > 1 else None if apart[0] else 1.0
        found.append({**one, "p_seeds": p})
    return found


def corrected(differences: Sequence[dict]) -> list[dict]:
    """Correct the p values for the number of comparisons in each suite, by Holm's method."""
    found = [dict(one) for one in differences]
    for suite in dict.fromkeys(one["suite"] for one in found):
        together = [one for one in found if one["suite"] == suite]
        for name in ("p", "p_seeds"):
            known = [one for one in together if one[name] is not None]
            for one, p in zip(known, holm([one[name] for one in known]), strict=True):
                one[name] = p
        for one in together:
            one["comparisons"] = len(together)
    return found


def _low(config: Config) -> list[str]:
    """Return the low-resource target languages."""
    return [code for code in config.languages.targets if config.languages.is_low(code)]


def summary(rows: Sequence[Mapping]) -> list[dict]:
    """Return (mean, standard deviation) over seeds by suite and variant; None as deviation of one seed."""
    grouped: dict[tuple[str, str], list[Mapping]] = {}
    for row in rows:
        grouped.setdefault((row["suite"], row["variant"]), []).append(row)
    found = []
    for (suite, variant), group in grouped.items():
        entry: dict = {"suite": suite, "variant": variant, "seeds": len(group)}
        for name in (*MEASURES, "low", "seconds"):
            values = [row[name] for row in group if row.get(name) is not None]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                entry[name] = (statistics.fmean(values), spread)
        found.append(entry)
    return found


def _variant(config: Config, overrides: Sequence[str], seed: int, folder: Path) -> Config:
    return with_overrides(config, [*overrides, f"seed={seed}", f"run={json.dumps(str(folder))}"])


def _rows(run: Run, variant: Variant, seed: int) -> list[dict]:
    remedy = f"remove {run.folder} and run again"
    scores = read_json(run.folder / "scores.json", "suites", remedy)["suites"]
    stages = read_json(run.folder / "ledger.json", "stages", remedy)["stages"]
    cost = next(stage for stage in stages if stage["stage"] == "distill")
    low = _low(run.config)
    rows = []
    for suite, found in scores.items():
        after = found["after"]
        means = {name: after[name]["mean"] for name in MEASURES if name in after}
        measure = next(iter(means), None)
        each = (
            {code: entry["value"] for code, entry in after[measure]["languages"].items()} if measure else {}
        )
        few = [each[code] for code in low if code in each]
        rows.append(
            {
                "data": "+".join(source.type for source in run.config.sources),
                "suite": suite,
                "variant": variant.name,
                "overrides": list(variant.overrides),
                "seed": seed,
                "trained_tokens": cost["tokens_backpropagated"],
                "flops": cost["flops"],
                "seconds": cost["seconds"],
                **means,
                "measure": measure,
                "languages": each,
                "low": statistics.fmean(few) if few else None,
                "signature": found["signature"],
            }
        )
    return rows
