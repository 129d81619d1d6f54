"""Page: the report of a run as one HTML file, built only from the run's files.

The sibling modules prepare the numbers and the templates lay them out. Autoescape is on, because a model's
answers may contain anything; no value is ever marked as safe.
Flow: read_folder → one block per suite, and the run's curves, tree and costs → page.html.jinja → report.html.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import jinja2

from isogloss.bases import EMBEDDED
from isogloss.errors import RunError
from isogloss.files import locked, write_text
from isogloss.report import answers, costs, curves, figures, nodes, overview, scores
from isogloss.report.folder import RunFolder, read_folder

T = TypeVar("T")

# Not allowed in HTML or not encodable: control characters except tab and newline, and lone surrogates.
FORBIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
DAMAGED: Final = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder atomically, and return its path.

    The same files give the same bytes.

    Raises:
        RunError: `scores.json` is missing or cannot be read, or another process is writing to the run.
    """
    folder = read_folder(run)
    try:
        page = render(folder)
    except (*DAMAGED, jinja2.UndefinedError) as error:
        file, remedy = run / "scores.json", "remove it and run `isogloss evaluate` again"
        raise RunError(f"{file} is not as expected ({error!r}); {remedy}") from error
    path = run / "report.html"
    with locked(run):
        write_text(path, page)
    return path


def render(run: RunFolder) -> str:
    """Render the page as text."""
    missing = dict(run.missing)

    def tolerant(file: str, rows: Sequence[Any], build: Callable[[Any], T], otherwise: T) -> T:
        try:
            return build(rows) if rows else otherwise
        except DAMAGED:
            missing[file] = f"{file} is not as expected; its section is left out."
            return otherwise

    totals = tolerant("ledger.json", run.ledger, costs.totals, [])
    glance = overview.Overview(run.scores)
    context = {
        "run": run,
        "overview": glance,
        "demo_model": re.search(rf"^model: {EMBEDDED}$", run.config or "", re.MULTILINE) is not None,
        "facts": _glance(glance),
        "blocks": [_block(run, name, index) for index, name in enumerate(run.scores["suites"], start=1)],
        "curves": tolerant("curves.jsonl", run.curves, curves.charts, ([], [])),
        "roots": tolerant("tree.json", run.tree, nodes.grow, []),
        "total_rank": tolerant("tree.json", run.tree, nodes.total_rank, 0),
        "stages": tolerant("ledger.json", run.ledger, costs.rows, []),
        "totals": totals,
        "cost": tolerant("ledger.json", run.ledger, costs.one_line, ""),
        "columns": [name for _, name, _ in costs.COLUMNS],
        "missing": missing,
    }
    page = _environment().get_template("page.html.jinja").render(context)
    return FORBIDDEN.sub("\ufffd", page)


def _block(run: RunFolder, name: str, index: int) -> dict[str, Any]:
    """Return everything that the template shows of one suite."""
    suite = scores.Suite(run.scores, name)
    before, after = run.predictions[name]
    pairs = answers.pairs(before, after)
    return {
        "id": f"suite-{index}",
        "suite": suite,
        "is_demo": name == "demo",
        "by_main": sorted(
            suite.languages, key=lambda label: -(suite.change(suite.main or "", label.code).after.value or 0)
        ),
        "answers": answers.chosen(pairs),
        "answered": f"{len(pairs):,}",
        "tally": answers.tally(pairs),
        "facts": _facts(suite),
        "missing": run.missing.get(f"predictions/{name}"),
    }


def _glance(view: overview.Overview) -> list[tuple[str, scores.Change, str]]:
    """Return the values below the headline of a run: title, values, and a note on each."""
    other = "all" if view.kind == "mastered" else "mastered"
    counted = [
        label for label in view.low if view.change("alignment_low", label.code).after.value is not None
    ]
    low = ", ".join(label.name for label in counted)
    alone = f"consistency alone {view.mean(f'consistency_{other}').arrow}"
    raw = view.mean("retrieval_raw")
    return [
        (f"Consistency, {view.kind} tasks", view.mean(f"consistency_{view.kind}"), ""),
        (f"Alignment accuracy, {other} tasks", view.mean(f"alignment_{other}"), alone),
        ("Retrieval of sentences", view.mean("retrieval"), f"raw cosine {raw.arrow}"),
        ("Alignment, low-resource languages", view.mean("alignment_low"), f"{low}; all tasks"),
        ("Fidelity: answers in the requested language", view.mean("fidelity"), ""),
    ]


def _facts(suite: scores.Suite) -> list[tuple[str, str]]:
    """Return the signature's fields and further facts about a suite."""
    fields = [part.partition(":") for part in str(suite.entries.get("signature") or "").split("|") if part]
    facts = [(field, value) for field, _, value in fields]
    english = (suite.entries.get("english") or {}).get("accuracy")
    if english is not None:
        facts.append(("English accuracy", f"{figures.percent(english)} %"))
    for task, metric, was, now in suite.official:
        means = f"{figures.percent(was.get('mean'))} → {figures.percent(now['mean'])} %"
        facts.append((f"{task} {metric}", means))
    if layer := _layer(suite.entries.get("layer")):
        facts.append(("retrieval layer", layer))
    for phase in scores.PHASES:
        if (cut := suite.cut(phase)) is not None:
            facts.append((f"answers truncated at the token limit, {phase}", f"{figures.percent(cut)} %"))
    return facts


def _layer(layer: Any) -> str:
    """Describe the layers of both sides and the source of the statistics; empty without retrieval."""
    if not isinstance(layer, Mapping):
        return "" if layer is None else str(layer)
    was, now = layer["before"], layer["after"]
    if not now:
        return ""
    text = (
        f"{was['retrieval']} → {now['retrieval']}; raw cosine {was['retrieval_raw']} → {now['retrieval_raw']}"
    )
    if not now["statistics"]:
        return f"{text}; not standardised: too few unreported sentences"
    return f"{text}; statistics from {now['statistics']} unreported sentences"


def _environment() -> jinja2.Environment:
    templates = resources.files("isogloss.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: templates.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["capfirst"] = lambda text: text[:1].upper() + text[1:]
    environment.globals.update(
        MAIN=scores.MAIN,
        FURTHER=scores.FURTHER,
        MEANINGS=scores.MEANINGS,
        RULE=answers.RULE,
        VERDICTS=overview.RULE,
        MASTERED=overview.MASTERED,
        OVER_TASKS=scores.OVER_TASKS,
        measure_name=scores.measure_name,
        percent=figures.percent,
        cut=answers.cut,
        place=lambda fraction: f"{100 * min(1.0, max(0.0, fraction)):.2f}%",
    )
    return environment
