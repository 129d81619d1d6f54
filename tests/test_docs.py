"""The documentation is correct: commands parse, settings and files exist, code compiles, links resolve."""

import ast
import inspect
import re
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from documents import PAGES, ROOT, Command, anchors, blocks, commands, links, prose, spans

import isogloss
from isogloss.cli.entry import USAGE_ERROR, app
from isogloss.config import Config, Settings, load_config
from isogloss.errors import IsoglossError
from isogloss.languages import languages
from tools import write_settings

GROUP: Any = typer.main.get_command(app)
MAKE = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
VARIABLES = re.findall(r"^(\w+) :=", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
OTHERS = {"cd", "cp", "curl", "llama-export-lora", "llama-server", "lm_eval", "ollama", "tensorboard", "vllm"}
"""Programs of others, whose arguments are not checked."""
GUIDE = [page for page in PAGES if page.parent.name == "guide"]
COMMANDS = [command for page in PAGES for command in commands(page)]
BLOCKS = [block for page in PAGES for block in blocks(page)]


def name(one: Any) -> str:
    """Return the test ID of a page or a part of one."""
    page = one if isinstance(one, Path) else one.page
    return str(page.relative_to(ROOT)) + ("" if isinstance(one, Path) else f": {one[-1][:60]}")


def parse(words: list[str]) -> None:
    """Parse the words like the command line, without running the command."""
    if not words[0].startswith("-"):
        assert words[0] in GROUP.commands, f"isogloss has no command {words[0]}"
        GROUP.commands[words[0]].make_context(words[0], list(words[1:]))


def has_options(source: Path, words: list[str]) -> None:
    """Check that the source has every option, as it is written or as a function's parameter."""
    text = source.read_text("utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert option in text or option.strip("-").replace("-", "_") in text, f"{source} has no {option}"


def accepted(words: list[str]) -> None:
    """Check one command of any program, including the settings that it gives."""
    while re.fullmatch(r"\w+=.*", words[0]):  # an environment variable
        words = words[1:]
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if "isogloss" in rest and words[words.index("isogloss") - 1] == "-m":  # behind a launcher
        program, rest = "isogloss", words[words.index("isogloss") + 1 :]
    if program == "isogloss":
        parse(rest)
    elif program == "make":
        known = {*MAKE, *VARIABLES}
        assert {word.partition("=")[0] for word in rest} <= known, f"the Makefile has no {rest}"
    elif program == "python" and rest[0] == "-m":
        module = find_spec(rest[1])
        assert module and module.origin, f"there is no module {rest[1]}"
        has_options(Path(module.origin), rest)
    elif program == "python":
        has_options(ROOT / rest[0], rest)
    elif program == "pip":
        for extra in re.findall(r"isogloss\[([\w,-]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(EXTRAS), extra
    elif program not in ("ruff", "pytest"):
        assert program in OTHERS, f"{program} is not known here; add it to OTHERS if it is not ours"
    given = [word for option, word in pairwise(rest) if option == "--set"]
    if given:
        files = [ROOT / word for word in rest if re.fullmatch(r"examples/[\w-]+\.yaml", word)]
        load_config(files[0] if files else None, given)


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS), ids=name)
def test_a_command_parses(command: Command):
    """The real command line parses it with its settings; nothing is run."""
    try:
        accepted(command.words)
    except (USAGE_ERROR, IsoglossError) as error:
        if not (command.mentioned and type(error).__name__ == "MissingParameter"):
            pytest.fail(f"{command.line}: {error}")


def test_every_command_is_documented():
    """Each is shown on at least one page."""
    shown = {words[1] for one in COMMANDS if (words := one.words)[0] == "isogloss" and len(words) > 1}
    assert set(GROUP.commands) - shown == set()


def test_an_invalid_command_is_detected():
    """This shows that the tests above can fail."""
    for words in (
        ["isogloss", "nothing"],
        ["isogloss", "run", "--nothing"],
        ["isogloss", "run", "--set", "nothing=1"],
        ["python", "benchmarks/plan.py", "--nothing"],
        ["make", "nothing"],
        ["nothing"],
    ):
        with pytest.raises((USAGE_ERROR, IsoglossError, AssertionError)):
            accepted(words)


def read_yaml(file: Path) -> Any:
    """Load a file as the program loads a file of this name."""
    match file.name:
        case "run.yaml":
            return load_config(file)
        case "machine.yaml":
            from isogloss.plan.machine import load_machine

            return load_machine(file)
        case "prompt.yaml":
            from isogloss.translate.prompt import load_prompt

            return load_prompt(file)
        case "families.yaml":
            from isogloss.adapters.grouping import families_of_file

            return families_of_file(file, ()) == {}
    pytest.fail(f"{file.name} is not a known title of a YAML block; use run.yaml for settings")


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "yaml"], ids=name)
def test_a_yaml_block_loads(block, tmp_path, monkeypatch):
    """It loads as the kind of file that its title says."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / block.title
    file.write_text(block.text, "utf-8")
    assert read_yaml(file)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.title for b in blocks(page))], ids=name)
def test_the_data_on_a_page_loads(page, tmp_path, monkeypatch):
    """It is read with the settings on the page that name it, or otherwise by its layout."""
    from isogloss.data import sources
    from isogloss.data.formats import layouts

    monkeypatch.chdir(tmp_path)
    shown = {b.title: b.text for b in blocks(page) if b.language in ("json", "csv")}
    for title, text in shown.items():
        Path(title).write_text(text, "utf-8")
    for block in (one for one in blocks(page) if one.title == "run.yaml"):
        Path(block.title).write_text(block.text, "utf-8")
        config = load_config(Path(block.title))
        read = [str(source.path) for source in config.sources if hasattr(source, "path")]
        if read and set(read) <= set(shown):
            assert sources.english_examples(config, None)
            assert sources.parallel_examples(config, None, config.languages.targets)
            shown = {title: text for title, text in shown.items() if title not in read}
    for title in shown:
        assert layouts.read(Path(title))[1]


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "python"], ids=name)
def test_a_python_block_compiles(block):
    """What it uses from the package exists."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isogloss"):
            assert find_spec(node.module or "")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "isogloss"
        ):
            assert node.attr in isogloss.__all__


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_have_a_known_language_and_a_title(page):
    """A block without a language would not be tested."""
    known = {"sh", "yaml", "python", "json", "csv"}
    assert {block.language for block in blocks(page)} <= known
    assert all(block.title for block in blocks(page) if block.language in ("yaml", "json", "csv"))


def classes(annotation: Any) -> list[type[Settings]]:
    """Return the settings classes in a type, including those inside unions and lists."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [one for part in get_args(annotation) for one in classes(part)]


def everywhere(kind: type[Settings] = Config) -> list[type[Settings]]:
    below = [one for field in kind.model_fields.values() for one in classes(field.annotation)]
    return [kind, *(found for one in below for found in everywhere(one))]


def is_setting(kinds: list[type[Settings]], parts: list[str]) -> bool:
    """Return whether a dotted name leads from one of these classes to a setting."""
    fields = [kind.model_fields[parts[0]] for kind in kinds if parts[0] in kind.model_fields]
    if not fields or len(parts) == 1:
        return bool(fields)
    below = [one for field in fields for one in classes(field.annotation)]
    return is_setting(below, parts[1:]) or any(
        get_args(field.annotation)[:1] for field in fields if not below
    )


ALL = everywhere()
SECTIONS = {name for kind in ALL for name, field in kind.model_fields.items() if classes(field.annotation)}
FILES = (".yaml", ".json", ".jsonl", ".csv", ".parquet", ".md", ".py", ".html", ".safetensors", ".gguf")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_setting_in_the_text_exists(page):
    """This covers every `section.name`, wherever the section is nested, and every `name: value`."""
    wrong = []
    for span in spans(page):
        dotted = re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?:$|: |=)", span)
        if dotted and dotted[1].split(".")[0] in SECTIONS and not dotted[1].endswith(FILES):
            if not is_setting(ALL, dotted[1].split(".")):
                wrong.append(span)
        elif (single := re.match(r"([a-z_]+): \S", span)) and not is_setting(ALL, [single[1]]):
            wrong.append(span)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_in_the_text_exists(page):
    """It belongs to our commands, our scripts, or a command of others on the page."""
    ours = {
        option for command in GROUP.commands.values() for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }  # fmt: skip
    beside = [
        file for folder in ("benchmarks", "experiments", "tools") for file in (ROOT / folder).glob("*.py")
    ]
    scripts = "".join(file.read_text("utf-8") for file in beside)
    theirs = {word for one in commands(page) if one.words[0] in OTHERS for word in one.words}
    named = {re.split(r"[ =]", span)[0] for span in spans(page) if re.match(r"--[a-z]", span)}
    named -= ours | theirs | {"--max-loras"}
    assert {one for one in named if one not in scripts and one.strip("-") not in scripts} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_on_a_page_exists(page):
    """This covers paths under our folders; <…> stands for any name."""
    folders = r"(?:isogloss|examples|benchmarks|tests|docs|tools|experiments)/[\w.<>/-]+"
    found = {path for span in spans(page) for path in re.findall(rf"(?:^|\s)({folders})", span)}
    found |= {
        word for one in commands(page) for word in one.words if re.fullmatch(folders, word)
    }  # fmt: skip
    assert {path for path in found if not [*ROOT.glob(re.sub(r"<\w+>", "*", path))]} == set()


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "docs").glob("*.md")], ids=name)
def test_every_link_resolves(page):
    """It leads to a file in the repository and a heading in it; web addresses are not checked."""
    wrong = []
    for link in links(page):
        if re.match(r"(https?|mailto):", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_every_page_of_the_guide_opens_with_its_purpose_and_a_command(page):
    """Both come before its first section."""
    opening = page.read_text("utf-8").split("\n## ")[0]
    assert re.match(r"# [^\n]+\n\nAfter this page you can ", opening) and "```sh\n" in opening


@pytest.mark.parametrize(
    "page", [page for page in PAGES if not page.name.startswith(("results", "settings"))], ids=name
)
def test_lines_are_short(page):
    """The limit is 110 columns, as in code; pages written by scripts are left out."""
    assert [line for line in page.read_text("utf-8").split("\n") if len(line) > 110] == []


def test_the_page_of_settings_is_up_to_date():
    """It equals what `python -m tools.write_settings` generates from `isogloss/config`."""
    assert write_settings.PAGE.read_text("utf-8") == write_settings.page()


def test_every_extra_suite_source_and_example_is_documented():
    """None can be added without documentation."""
    from isogloss.evaluate.suites import ABOUT

    guide = {span for page in GUIDE for span in spans(page)}
    text = " ".join(sorted(guide)) + " ".join(one.line for one in COMMANDS)
    assert {extra for extra in EXTRAS if f"isogloss[{extra}]" not in guide} == {"test", "docs"}
    assert set(ABOUT) - guide == set()
    types = {get_args(kind.model_fields["type"].annotation)[0] for kind in ALL if "type" in kind.model_fields}
    assert {one for one in types if one not in text} == set()
    assert {file.name for file in (ROOT / "examples").glob("*.yaml") if file.name not in text} == set()


def test_the_guide_states_the_number_of_languages():
    """It is the number of languages in the registry, which `isogloss languages` lists."""
    assert f"lists all {len(languages())};" in re.sub(r"\s+", " ", prose(ROOT / "docs/guide/data.md"))


def test_pages_and_commands_are_found():
    """The tests above cannot pass by finding nothing."""
    assert len(GUIDE) >= 8 and len(COMMANDS) > 60 and len(BLOCKS) > 50
    assert sum(len(links(page)) for page in PAGES) > 80 and sum(len(spans(page)) for page in PAGES) > 500
