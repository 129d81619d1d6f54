"""The command line: its output, its refusals, and that a refusal leaves no files behind."""

import ast
import errno
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import AutoModelForCausalLM

from experiments import ablate
from isogloss.cli import main, screen
from isogloss.cli.screen import out, printable
from isogloss.cli.tables import columns
from isogloss.config import dump_config, load_config
from isogloss.evaluate.gain import Gain
from isogloss.evaluate.statistics import Estimate
from isogloss.files import LOCK

SMALL = (
    "data.english_items=24", "tune.epochs=1", "tune.batch_size=8", "languages.targets=[sw,es,ur]",
    "languages.items={high: 6, middle: 6, low: 6}", "distill.epochs=1", "distill.batch_size=6",
    "distill.max_prompt_length=5000", "evaluate.items=7", "evaluate.sentences=6", "evaluate.max_new_tokens=3",
    "dtype=float32",
)  # fmt: skip


def small(folder: Path, base: Path) -> list[str]:
    return [word for s in (*SMALL, f"run={folder}", f"model={base}") for word in ("--set", s)]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    """A complete run of the command with three languages."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert leave(["run", *small(folder, base)]) == 0
    return folder


def leave(arguments: list[str], *app) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(arguments, *app)
    return int(caught.value.code or 0)


def refusal(arguments: list[str], capsys, *app) -> list[str]:
    """Run a command that must be refused and return its lines on stderr."""
    assert leave(arguments, *app) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.removesuffix("\n").split("\n")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def but_locks(folder: Path) -> dict[str, bytes]:
    """Return the files without the lock, which names the last process that held the run's folder."""
    return {name: content for name, content in files(folder).items() if Path(name).name != LOCK}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "error No such command 'rnu'. Did you mean 'run'? See `isogloss --help`."),
        (["run", "--foo"], "error No such option: --foo See `isogloss run --help`."),
        (["report"], "error Missing argument 'RUN'. See `isogloss report --help`."),
        (["report", "gone"], "error gone is not a run folder; it has no config.yaml"),
        (["ask", "gone", "hi"], "error gone is not a run folder; it has no config.yaml"),
        (["run", "a.yaml"], "error a.yaml does not exist; name a YAML file of settings"),
        (
            ["run", "--set", "seed"],
            "error --set seed: write it as name=value, for example --set distill.epochs=2",
        ),
        (
            ["distill"],
            "error runs/demo has no tuned model; run `isogloss tune` first",
        ),
        (["evaluate"], "error Missing argument 'RUN'. See `isogloss evaluate --help`."),
        (["evaluate", "gone"], "error gone is not a run folder; it has no config.yaml"),
        (
            ["tune", "--set", "model=./gone"],
            "error --set model=./gone: model is ./gone; there is no such folder",
        ),
        (
            ["languages", "swahilli"],
            "error 'swahilli' is not a known language code; did you mean sw (Swahili)?",
        ),
    ],
)
def test_a_refusal_is_one_line_and_creates_no_files(arguments, line, capsys, tmp_path, monkeypatch):
    """The exit code is always 2."""
    monkeypatch.chdir(tmp_path)
    assert refusal(arguments, capsys) == [line]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "out", "fault"),
    [
        ("en/a.jsonl", "en/../en/a.jsonl", "is DATA itself, which would be overwritten"),
        ("en/a.jsonl", "b.jsonl", "is a folder"),
        ("en", "en/more/a.jsonl", "is in en, and would be read as data"),
        ("en/a.jsonl", "en/a.jsonl/b.jsonl", "cannot be written, as FOLDER/en/a.jsonl is a file"),
    ],
)
def test_a_translation_that_could_not_be_written_is_refused(data, out, fault, capsys, tmp_path, monkeypatch):
    """Nothing is read or requested before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en").mkdir()
    (tmp_path / "b.jsonl").mkdir()
    Path("en/a.jsonl").write_text("no data")
    assert refusal(["translate", data, "--to", "sw", "--out", out, "--model", "none"], capsys) == [
        f"error --out {out}: {fault}; name another file".replace("FOLDER", str(tmp_path.resolve()))
    ]


@pytest.mark.parametrize(
    ("data", "option", "file"),
    [("a.parquet", ["--parquet"], "a.parquet"), ("a.csv", ["--review", "a.csv"], "a.csv")],
)
def test_no_file_of_a_translation_overwrites_its_data(data, option, file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(data).write_text("id,text\n")
    line = ["translate", data, "--to", "sw", "--out", "a.jsonl", "--model", "none", *option]
    (said,) = refusal(line, capsys)
    assert said.startswith(f"error {option[0]} {file}: is DATA itself, which would be overwritten")


def test_the_language_of_chats_is_in_the_line_to_copy(capsys, tmp_path):
    """For data that name their languages, it is refused."""
    chats, table = tmp_path / "chats.jsonl", tmp_path / "rows.jsonl"
    chats.write_text('{"prompt": "Habari?", "completion": "Nzuri."}\n')
    table.write_text('{"id": "1", "en": {"instruction": "Hi"}, "sw": {"instruction": "Habari"}}\n')
    assert leave(["data", str(chats), "--language", "swh"]) == 0
    assert f'{{type: chat, path: "{chats}", language: sw}}' in " ".join(capsys.readouterr().out.split())
    assert refusal(["data", str(table), "--language", "sw"], capsys) == [
        f"error --language sw: {table} names its languages (all languages in a row); leave it out"
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["evaluate", "--suite", "nope"],
            "error --suite: nope is not a suite; choose from demo, massive, flores101, ntrex, translation, "
            "xnli, pawsx, sib200, xcopa, xquad, mlqa, xglue, language_confusion, parallel",
        ),
        (
            ["evaluate", "--suite", "demo", "--set", "evaluate.suites=[xnli]"],
            "error --set evaluate.suites=[xnli]: --suite names the suites; leave one of them out",
        ),
        (
            ["ask", "Habari", "--twin", " "],
            "error --twin: is empty; write the instruction in English, or leave it out",
        ),
        (
            ["add-language", "de", "--data", "de.jsonl"],
            "error RUN has no tuned model; run `isogloss tune` first",
        ),
    ],
)
def test_a_run_whose_wordings_were_varied_is_only_refused_what_it_lacks(
    arguments, line, capsys, tmp_path, monkeypatch
):
    """Its stage 1 is over, so a language may come from a file without wordings."""
    monkeypatch.chdir(tmp_path)
    run = Path("RUN")
    run.mkdir()
    settings = load_config(None, ["data={type: massive}", "tune.vary_wording=true"])
    (run / "config.yaml").write_text(dump_config(settings))
    Path("de.jsonl").touch()
    command, *rest = arguments
    assert refusal([command, "RUN", *rest], capsys) == [line]


def test_data_shows_a_line_that_can_be_pasted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Kiswahili é.jsonl").write_text('{"id": "1", "en": {"instruction": "Hi"}}\n')
    assert leave(["data", "Kiswahili é.jsonl"]) == 0
    assert 'data: {type: parallel, path: "Kiswahili é.jsonl"}' in capsys.readouterr().out


def test_a_data_root_must_be_a_folder(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert refusal(["suites", "--data-root", str(tmp_path / "file")], capsys) == [
        f"error data root {tmp_path}/file is not a folder; set --data-root or ISOGLOSS_DATA"
    ]


def test_all_errors_of_a_file_are_printed(capsys, tmp_path, monkeypatch):
    """There is one line per error, each marked as an error."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("sed: 1\ndata:\n  type: demo\n  foo: 1\n")
    assert refusal(["run", "run.yaml"], capsys) == [
        "error run.yaml:1: sed is not a setting; did you mean seed?",
        "error run.yaml:4: data.foo is not a setting of data type demo; valid settings are weight, type, "
        "english_items",
    ]
    assert list(tmp_path.iterdir()) == [Path(tmp_path / "run.yaml")]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            '{"id": "1", "en": {"instruction": "Hi", "response": "Y"}}\n{"id": 2, "sw": {"instruction": 3}}',
            "data.jsonl:2: the instruction in sw is a number; it must be text",
        ),
        (
            '{"id": "1", "en": {"instruction": "Hi", "response": "Yo"}, "sw": {"instruction": "Jambo"}}\n',
            "the data has no ur; add items or take it out of languages.targets",
        ),
        (
            '{"id": "1", "en": {"instruction": "a"}, "sw": {"instruction": "b"}, "ur": {"instruction": "c"}}',
            "data: no example has an English instruction with a response; stage 1 needs them",
        ),
    ],
)  # fmt: skip
def test_unusable_data_is_refused_before_the_run_folder_is_created(
    rows, says, base, capsys, tmp_path, monkeypatch
):
    """The cases are malformed rows, a language without data, and data without English responses."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text(rows)
    settings = [f"model={base}", "run=new", "data={type: parallel, path: data.jsonl}"]
    words = [word for s in (*settings, "languages.targets=[sw,ur]") for word in ("--set", s)]
    assert refusal(["run", *words], capsys) == [f"error {says}"]
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_help_and_invalid_settings_do_not_import_torch():
    """This keeps both fast."""
    code = (
        "import sys\nfrom isogloss import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    for arguments, says in ((["--help"], "0 False"), (["run", "--set", "seed=x"], "2 False")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == says


def test_without_a_terminal_a_run_prints_its_stages_in_plain_lines(base, tmp_path, capfd):
    """There are no control characters, no library logs and nothing on stderr; the last line is the report's
    path."""
    folder = tmp_path / "run"
    assert leave(["run", *small(folder, base)]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert [c for c in said.out if ord(c) < 32 and c != "\n"] == []
    lines = [line for line in said.out.split("\n") if line]
    begins = [line.split(":")[0].strip() for line in lines]
    stages = ["Stage 1", "English tuning", "Stage 2", "Teacher scores", "Distillation"]
    assert [name for name in begins if name in stages] == stages
    assert "train_runtime" not in said.out
    assert lines[-1] == f"Report: {folder}/report.html"


def test_the_time_left_follows_the_latest_steps(monkeypatch, capsys):
    """Resumed at step 50 of 100; the first step compiles for ten minutes, and each of the others 20 s."""
    clock = iter([0.0, 600.0, 620.0, 640.0, 660.0, 700.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    with screen.Screen()._lines("Tuning") as progress:
        for done in (51, 52, 53, 54):
            progress(done, 100)
    assert capsys.readouterr().out.splitlines() == [
        "  Tuning: 51 %",
        "  Tuning: 52 %, 16:00 left",
        "  Tuning: 53 %, 15:40 left",
        "  Tuning: 54 %, 15:20 left",
        "  Tuning: 11:40",
    ]


def test_a_second_run_says_that_it_is_complete(finished, base, capsys):
    """No file changes."""
    before = files(finished)
    assert leave(["run", *small(finished, base)]) == 0
    assert capsys.readouterr().out == f"{finished} is complete; its report is {finished}/report.html\n"
    assert files(finished) == before


def test_a_run_folder_made_with_other_settings_is_refused(finished, base, capsys):
    """The error names the first setting that differs, and the folder is unchanged."""
    before = files(finished)
    assert refusal(["run", *small(finished, base), "--set", "seed=1"], capsys) == [
        f"error {finished} was made with other settings (seed: 0 there, seed: 1 here); "
        "use another run folder or these settings"
    ]
    assert files(finished) == before


def test_a_command_run_too_early_names_the_missing_stage(base, finished, capsys, tmp_path):
    """`ask` and `report` do so too."""
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    line = [f"error {tmp_path} has no tuned model; run `isogloss tune` first"]
    assert refusal(["ask", str(tmp_path), "Habari", "--language", "sw"], capsys) == line
    assert refusal(["evaluate", str(tmp_path)], capsys) == line
    (tmp_path / "tuned").mkdir()
    line = [f"error {tmp_path} has no adapters; run `isogloss distill` first"]
    assert refusal(["ask", str(tmp_path), "Habari"], capsys) == line
    assert refusal(["report", str(tmp_path)], capsys) == [
        f"error {tmp_path}/scores.json is missing; run `isogloss evaluate` first, which writes it"
    ]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["config.yaml", "tuned"]


def test_evaluate_writes_to_the_given_folder(finished, capsys, tmp_path):
    """Evaluating a copy leaves the original run, which its settings name, unchanged."""
    copy, before = tmp_path / "a copy", files(finished)
    shutil.copytree(finished, copy)
    (copy / "scores.json").unlink()
    assert leave(["evaluate", str(copy), "--set", "evaluate.items=3"]) == 0
    scores = json.loads((copy / "scores.json").read_text())["suites"]["demo"]
    assert scores["after"]["consistency"]["languages"]["sw"]["n"] == 3
    assert files(finished) == before
    assert capsys.readouterr().out.endswith(f"\nReport: {copy}/report.html\n")
    assert leave(["run", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy} is complete; its report is {copy}/report.html\n"
    assert refusal(["evaluate", str(copy / "config.yaml")], capsys) == [
        f"error {copy}/config.yaml is a file; name the run folder, {copy}"
    ]
    for name in ("seed=1", "run=other", "distill.learning_rate=1", "distill.adapter.scaling=4"):
        for words in (["evaluate"], ["transfer", "--language", "de"]):
            assert refusal([words[0], str(copy), *words[1:], "--set", name], capsys) == [
                f"error --set {name}: for a finished run only evaluate settings and data_root may change"
            ]


def test_settings_without_effect_on_a_finished_run_are_refused_and_not_saved(finished, capsys, tmp_path):
    """Of suites that are not evaluated, and a layer that the model lacks."""
    shutil.copytree(finished, copy := tmp_path / "copy")
    before = (copy / "config.yaml").read_text()
    for name, value, says in (
        ("evaluate.parallel.path", finished / "config.yaml", "evaluate.suites contains parallel; add it"),
        ("evaluate.likelihood", "[xnli]", "contains xnli; add it to evaluate.suites"),
        ("evaluate.layer", "99", "evaluate.layer"),
    ):
        (line,) = refusal(["evaluate", str(copy), "--set", f"{name}={value}"], capsys)
        assert says in line
    assert (copy / "config.yaml").read_text() == before


def test_another_batch_size_scores_nothing_again(finished, capsys, tmp_path):
    """The number of prompts read together changes no score."""
    shutil.copytree(finished, copy := tmp_path / "copy")
    changed = (copy / "predictions" / "demo.after.jsonl").stat().st_mtime_ns
    assert leave(["evaluate", str(copy), "--set", "evaluate.batch_size=5"]) == 0
    assert (copy / "predictions" / "demo.after.jsonl").stat().st_mtime_ns == changed
    capsys.readouterr()


def test_a_run_that_another_process_writes_to_is_unchanged(finished, base, capsys):
    """Every command that would write is refused; reading is allowed."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom isogloss.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(finished)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        before = files(finished)
        for arguments in (
            ["run", *small(finished, base)], ["evaluate", str(finished)], ["report", str(finished)],
            ["add-language", str(finished), "de"], ["export", str(finished), "--all"],
        ):  # fmt: skip
            (line,) = refusal(arguments, capsys)
            assert line.startswith(f"error {finished} is being written to by process {holder.pid} on ")
        assert files(finished) == before
        assert leave(["ask", str(finished), "Habari", "--language", "sw"]) == 0
        holder.stdin.close()


def test_a_path_with_spaces_is_quoted_in_commands_and_cards(finished, capsys, tmp_path):
    """Both the vLLM command and the card's Python code contain the whole path."""
    folder = tmp_path / "two words" / "it's"
    shutil.copytree(finished, folder)
    assert leave(["export", str(folder), "--language", "sw"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    out = folder / "exports" / "peft" / "sw"
    assert shlex.split(command) == [
        "vllm", "serve", f"{folder}/tuned", "--enable-lora", "--max-lora-rank", "32", "--lora-modules",
        f"sw={out}",
    ]  # fmt: skip
    source = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    assert {f"{folder}/tuned", str(out)} <= set(texts)


@pytest.mark.parametrize(
    "more", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_with_another_encoding_causes_no_error(more):
    """Characters that it lacks become question marks."""
    command = [sys.executable, "-m", "isogloss", "languages", "Thai"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **more})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split(b"\n")[0].startswith(b"th ") and b"Thai, ???" in done.stdout


def test_a_text_that_is_not_utf8_is_refused(finished, capsys):
    """Python passes such arguments with surrogate escapes."""
    assert refusal(["ask", str(finished), "a\udcff", "--language", "sw"], capsys) == [
        "error the instruction is not UTF-8; set the terminal to UTF-8, or convert the text"
    ]


def test_a_port_in_use_is_refused_by_name(finished, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert refusal(["serve", str(finished), "--port", str(port)], capsys) == [
            f"error cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port or "
            "--host; --port 0 takes a free port"
        ]


def test_an_eof_error_is_not_treated_as_an_interrupt(monkeypatch):
    """Click treats it as Ctrl-D, and the message would wrongly say that the same command resumes."""
    monkeypatch.setattr("isogloss.cli.runs.load_config", Mock(side_effect=EOFError))
    with pytest.raises(RuntimeError, match="a file ended too early"):
        main(["run"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error No space left on device\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "error /x: No space left on device\n"),
        (OSError("no model\nis there"), "error no model\n"),
    ],
)
def test_a_system_error_prints_its_path_if_it_has_one(error, line, monkeypatch, capsys):
    """Only the first line of its message is printed."""
    monkeypatch.setattr("isogloss.cli.runs.load_config", Mock(side_effect=error))
    assert leave(["run"]) == 2
    assert capsys.readouterr().err == line


def test_ask_shows_the_answers_side_by_side(finished, capsys):
    """With a twin, the reference model's English answer comes first."""
    assert leave(["ask", str(finished), "Habari", "--language", "swh", "--twin", "Hello"]) == 0
    header = capsys.readouterr().out.split("\n")[0]
    assert header.split() == ["reference,", "English", "zero-shot", "aligned"]
    assert leave(["ask", str(finished), "Habari", "--language", "sw"]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["zero-shot", "aligned"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("pt", "Portuguese was not taught; it answers through its family, Indo-European / Italic / Romance."),
        ("zh", "Chinese (Simplified) was not taught; it answers through the root."),
    ],
)
def test_ask_names_the_node_that_answers_for_an_untaught_language(code, says, finished, capsys):
    """It is the language's family if that was taught, else the root."""
    assert leave(["ask", str(finished), "x", "--language", code]) == 0
    assert capsys.readouterr().out.split("\n")[0] == says


def test_ask_refuses_an_unknown_language(finished, capsys):
    assert refusal(["ask", str(finished), "x", "--language", "sww"], capsys) == [
        "error --language: 'sww' is not a known language code; use one such as sw, swh_Latn or Swahili"
    ]


def test_gains_come_from_the_suites_that_have_dev_items(finished, capsys, tmp_path, monkeypatch):
    """Of the run's own suites, those without a dev split are left out; a named one is refused."""

    def gains(model, tokenizer, items, languages, *others, progress, **more):
        progress(1, 1)
        return [Gain("bare", "demo", "sw", len(items), 0.5, Estimate(0.0, 0.0, 0.0, len(items)))]

    monkeypatch.setattr("isogloss.pipeline.evaluation.gains", gains)
    shutil.copytree(finished, folder := tmp_path / "copy")
    suites = load_config(folder, ["evaluate.suites=[ntrex, demo, xquad]"])
    (folder / "config.yaml").write_text(dump_config(suites))
    capsys.readouterr()
    assert leave(["teacher-gain", str(folder), "--items", "7", "--json"]) == 0
    said = capsys.readouterr()
    (found,) = json.loads(said.out)
    assert found["items"] > 0 and found["agreement"] == 0.5
    assert said.err.splitlines()[:2] == [
        f"{name} is left out, as it has no dev split" for name in ("ntrex", "xquad")
    ]
    assert leave(["teacher-gain", str(folder), "--items", "7"]) == 0
    assert "ntrex is left out, as it has no dev split\n" in capsys.readouterr().out
    assert refusal(["teacher-gain", str(folder), "--suite", "ntrex"], capsys) == [
        "error --suite: ntrex has no dev split, on which gains are measured; name other suites"
    ]


def test_ask_without_a_text_answers_line_by_line(finished, capsys, monkeypatch):
    """The end of the input or an empty line ends the session without an error."""
    for typed in ("Habari\nAsante", "Habari\nAsante\n\nnever read\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert leave(["ask", str(finished), "--language", "sw"]) == 0
        said = capsys.readouterr()
        assert said.out.count("zero-shot") == 2 and said.err == ""


def test_a_models_control_characters_never_reach_the_terminal():
    """Zero-width joiners, which scripts need, are kept."""
    assert printable("a\x1b[31m\u200db\n\x07") == "a�[31m\u200db\n�"


def test_a_table_title_with_brackets_is_printed_as_it_is(capsys):
    """A task of someone's file is named in it."""
    out.print(columns("prompt before the instruction", "mean", "gain", title="qa [open] [/x]"))
    assert capsys.readouterr().out.startswith("qa [open] [/x]")


def test_report_rewrites_the_page(finished, capsys):
    """The printed path is never wrapped."""
    (finished / "report.html").unlink()
    assert leave(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"Report: {finished}/report.html\n"
    assert (finished / "report.html").is_file()


def test_report_writes_results_in_the_format_of_lm_evaluation_harness(finished, capsys, tmp_path):
    """There is a file each for before and after, with a task per suite and language and a group per suite."""
    assert leave(["report", str(finished), "--lm-eval-json", str(tmp_path)]) == 0
    before, after = (next((tmp_path / phase).glob("results_*.json")) for phase in ("before", "after"))
    assert capsys.readouterr().out.split("\n")[1:3] == [f"Results: {before}", f"Results: {after}"]
    found = json.loads(after.read_text("utf-8"))
    assert found["group_subtasks"] == {"demo": ["demo_sw", "demo_es", "demo_ur"]}
    scores = json.loads((finished / "scores.json").read_text("utf-8"))["suites"]["demo"]["after"]
    one = found["results"]["demo_sw"]
    assert one["acc,none"] == pytest.approx(scores["accuracy"]["languages"]["sw"]["value"])
    assert one["retrieval,none"] == pytest.approx(scores["retrieval"]["languages"]["sw"]["value"])
    assert found["groups"]["demo"]["acc,none"] == scores["accuracy"]["mean"]
    assert "peft" in found["config"]["model_args"]
    assert "peft" not in json.loads(before.read_text("utf-8"))["config"]["model_args"]


def test_a_dry_run_counts_skipped_items_and_writes_nothing(base, capsys, tmp_path):
    """It prints a table of reasons and counts."""
    assert leave(["tune", "--dry-run", *small(tmp_path / "run", base)]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["reason", "items"]
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_languages_fits_eighty_columns(capsys):
    """There is one line per language, plus a header and a last line."""
    from rich.cells import cell_len

    from isogloss.languages import languages

    assert leave(["languages"]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) == len(languages()) + 2
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split() == ["code", "name", "autonym", "data", "family"]


def test_the_list_of_suites_says_whether_their_data_is_available(capsys, tmp_path, monkeypatch):
    """It fits eighty columns; suites that ship with the package are always available."""
    monkeypatch.delenv("ISOGLOSS_DATA", raising=False)
    (tmp_path / "x-final").mkdir()
    (tmp_path / "floresp-v2.1").mkdir()
    assert leave(["suites", "--data-root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 80
    there = {line.split()[0]: line.split()[1] for line in lines[1:] if not line.startswith(" ")}
    assert there == {
        "demo": "here", "massive": "—", "flores101": "here", "xnli": "—", "pawsx": "here", "sib200": "—",
        "xcopa": "—", "xglue": "here", "ntrex": "—", "translation": "here", "xquad": "—", "mlqa": "—",
        "language_confusion": "—", "parallel": "here",
    }  # fmt: skip


def test_one_language_is_shown_with_all_its_codes(capsys):
    """It is found by any of its names or codes."""
    for name in ("swahili", "swh_Latn", "Kiswahili", "SW"):
        assert leave(["languages", name]) == 0
        lines = [line.rstrip() for line in capsys.readouterr().out.split("\n")]
        assert lines[:7] == [
            "sw          Swahili, Kiswahili", "BCP 47      sw", "ISO 639-3   swh", "FLORES-101  swh",
            "FLORES-200  swh_Latn", "FLORES+     swh_Latn", "NTREX       swa",
        ]  # fmt: skip


def test_an_interrupted_command_says_how_to_resume(monkeypatch, capsys):
    """The exit code is that of an interrupt."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("isogloss.cli.runs.load_config", interrupted)
    assert leave(["run"]) == 130
    assert capsys.readouterr().err == "stopped; the same command resumes from what was saved\n"
    assert leave(["plan"]) == 130  # which saves nothing
    assert capsys.readouterr().err == "stopped\n"


def test_the_command_without_arguments_shows_the_help(capsys):
    """The exit code is 0."""
    assert leave([]) == 0
    assert "Usage: isogloss [OPTIONS] COMMAND" in capsys.readouterr().out


def test_export_writes_peft_adapters_and_prints_the_command_to_serve_them(finished, capsys, tmp_path):
    """The adapters have rank 24, for which vLLM needs 32; the card gives the difference from the run."""
    target = tmp_path / "out"
    assert (
        leave(["export", str(finished), "--language", "swh", "--language", "es", "--out", str(target)]) == 0
    )
    said = capsys.readouterr().out
    serve = f"vllm serve {finished}/tuned --enable-lora --max-lora-rank 32 --max-loras 2 --lora-modules"
    assert f"{serve} sw={target}/sw" in said
    assert json.loads((target / "es" / "adapter_config.json").read_text())["r"] == 24
    card = (target / "sw" / "README.md").read_text()
    assert "language: [sw]" in card and "| alignment |" in card
    difference = float(re.search(r"largest difference in logits (\S+),", card)[1])
    assert difference <= 1e-4


def test_a_merged_export_is_a_plain_model_with_the_same_logits(finished, capsys, tmp_path):
    """It loads without PEFT; a second export to the same folder is refused."""
    target = tmp_path / "out"
    options = ["--language", "sw", "--format", "merged", "--out", str(target)]
    assert leave(["export", str(finished), *options]) == 0
    assert not (target / "sw" / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(target / "sw")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    card = (target / "sw" / "README.md").read_text()
    assert float(re.search(r"largest difference in logits (\S+),", card)[1]) <= 1e-3
    capsys.readouterr()
    assert refusal(["export", str(finished), *options], capsys)[-1] == (
        f"error {target}/sw already exists; choose another --out or remove it"
    )


@pytest.mark.parametrize(
    ("command", "options", "line"),
    [
        ("export", [], "error name the languages with --language CODE, or all of them with --all"),
        (
            "export",
            ["--all", "--language", "sw"],
            "error name the languages with --language CODE, or all of them with --all",
        ),
        (
            "export",
            ["--language", "sww"],
            "error --language: 'sww' is not a known language code; use one such as ",
        ),
        (
            "export",
            ["--all", "--format", "merged", "--max-rank", "4"],
            "error --max-rank: a merged model has no rank; leave it out or use --format peft",
        ),
        (
            "export",
            ["--all", "--precision", "f16"],
            "error --precision: --format peft keeps the run's dtype; leave it out",
        ),
        (
            "export",
            ["--all", "--format", "gguf", "--push-to-hub", "me/mine"],
            "error --push-to-hub: GGUF files are not uploaded to the Hub; upload the folder yourself",
        ),
        (
            "export",
            ["--all", "--format", "gguf", "--precision", "q2"],
            "error --precision: 'q2' is not one of f32, f16, bf16, q8_0, q4_k_m",
        ),
        ("add-language", ["sw"], "error sw was already taught; choose another language"),
        (
            "add-language",
            ["sww"],
            "error CODE: 'sww' is not a known language code; use one such as sw, swh_Latn or Swahili",
        ),
        (
            "add-language",
            ["de", "--set", "distill.adapter.scaling=1"],
            "error --set distill.adapter.scaling=1: ",
        ),
        (
            "add-language",
            ["de", "--data", "gone.jsonl"],
            'error --set data={type: parallel, path: "gone.jsonl"}: data.path is ',
        ),
        ("add-language", ["pt"], "error the data has no pt; add items, or name a file by --data"),
    ],
)
def test_a_refusal_leaves_a_finished_run_unchanged(command, options, line, finished, capsys):
    """This holds for `export` and `add-language`."""
    before = but_locks(finished)
    assert refusal([command, str(finished), *options], capsys)[0].startswith(line)
    assert but_locks(finished) == before


def test_add_language_adds_a_language_to_a_finished_run(finished, capsys, tmp_path):
    """The data comes from a file of parallel items, or from the run's own data."""
    grown = tmp_path / "grown"
    shutil.copytree(finished, grown)
    file = tmp_path / "de.jsonl"
    twin, turn = (
        {"instruction": "Say hi", "response": "Hi"},
        {"instruction": "Sag hallo", "response": "Hallo"},
    )
    file.write_text("".join(json.dumps({"id": str(n), "en": twin, "de": turn}) + "\n" for n in range(4)))
    assert leave(["add-language", str(grown), "deu", "--data", str(file), "--set", "distill.epochs=2"]) == 0
    assert leave(["add-language", str(grown), "zh"]) == 0
    said = capsys.readouterr().out
    assert f"Adapters: {grown}/adapters/de\n" in said
    assert f"To measure them too: isogloss evaluate {grown}\n" in said.replace("\nisogloss", " isogloss")
    assert {p.name for p in (grown / "adapters").glob("*/")} == {"sw", "es", "ur", "de", "zh"}
    assert leave(["ask", str(grown), "Hallo", "--language", "de"]) == 0
    assert "was not taught" not in capsys.readouterr().out


def test_an_ablation_measures_variants_on_one_reference_model(base, tmp_path, capsys):
    """It runs two built-in trees and a custom variant, two at a time; running it again with one job changes
    nothing."""
    folder = tmp_path / "out"
    asked = ["--variant", "families", "--variant", "flat", "--variant", "small: distill.adapter.ranks.root=2"]
    command = [*small(tmp_path / "unused", base), "--out", str(folder), *asked]
    assert leave([*command, "--jobs", "2"], ablate.app) == 0
    lines = capsys.readouterr().out.split("\n")
    assert {line for line in lines if line.endswith(": done")} == {
        f"{name}, seed 0: done" for name in ("families", "flat", "small")
    }
    assert [line.split()[0] for line in lines if line.startswith(("families ", "flat ", "small "))]
    written = json.loads((folder / "ablation.json").read_text())
    rows, differences = written["rows"], written["differences"]
    assert [(one["variant"], one["against"], one["languages"]) for one in differences] == [
        ("flat", "families", "all"), ("flat", "families", "low"),
        ("small", "families", "all"), ("small", "families", "low"),
    ]  # fmt: skip
    means = {row["variant"]: row for row in rows}
    for one in differences:
        name = "alignment" if one["languages"] == "all" else "low"
        expected = means[one["variant"]][name] - means["families"][name]
        assert one["value"] == pytest.approx(expected) and 0 < one["p"] <= 1
    assert [(row["variant"], row["seed"], row["suite"]) for row in rows] == [
        ("families", 0, "demo"), ("flat", 0, "demo"), ("small", 0, "demo"),
    ]  # fmt: skip
    # Flat has no root, so no rows of English replay.
    assert means["families"]["trained_tokens"] == means["small"]["trained_tokens"]
    assert means["families"]["trained_tokens"] != means["flat"]["trained_tokens"]
    assert all(0 <= row["alignment"] <= 1 and set(row["languages"]) == {"sw", "es", "ur"} for row in rows)
    weights = {(folder / name / "tuned" / "model.safetensors").read_bytes() for name in ("seed-0", "flat-0")}
    assert len(weights) == 1
    ranks = [
        sum(node["rank"] for node in json.loads((folder / name / "tree.json").read_text())["nodes"])
        for name in ("families-0", "flat-0", "small-0")
    ]
    assert ranks == [16 + 6 * 4, 3 * 24, 2 + 6 * 4]
    before = but_locks(folder)
    assert leave(command, ablate.app) == 0
    assert but_locks(folder) == before
    assert not (tmp_path / "unused").exists()


def test_an_ablation_over_item_counts_is_a_learning_curve(base, tmp_path):
    """Every variant runs once per count and is compared with the first variant at the same count."""
    folder = tmp_path / "out"
    asked = ["--variant", "families", "--variant", "flat", "--items", "2", "--items", "4"]
    command = [*small(tmp_path / "unused", base), "--out", str(folder), *asked]
    assert leave(command, ablate.app) == 0
    written = json.loads((folder / "ablation.json").read_text())
    assert [row["variant"] for row in written["rows"]] == ["families@2", "flat@2", "families@4", "flat@4"]
    tokens = [row["trained_tokens"] for row in written["rows"]]
    assert tokens[0] < tokens[2] and tokens[1] < tokens[3]
    compared = [(one["variant"], one["against"]) for one in written["differences"]]
    assert compared == [("flat@2", "families@2")] * 2 + [("flat@4", "families@4")] * 2


@pytest.mark.parametrize(
    ("variant", "line"),
    [
        ("flatt", "error --variant flatt: unknown; choose from families, random, flat, shared, "),
        (
            "x: tune.epochs=1",
            "error --variant x: tune.epochs=1: tune.epochs=1 changes stage 1 or the evaluation, ",
        ),
        ("x:", "error --variant x:: write it as 'NAME: a.b=c d.e=f'"),
    ],
)
def test_an_invalid_variant_is_refused(variant, line, capsys, tmp_path):
    """It is refused before any run starts."""
    command = ["--variant", variant, "--out", str(tmp_path / "out")]
    assert refusal(command, capsys, ablate.app)[0].startswith(line)
    assert list(tmp_path.iterdir()) == []
