"""Settings as YAML 1.2: read with the line of every entry, and written so that they round-trip."""

import difflib
import json
import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from isogloss.config.schema import Config
from isogloss.errors import ConfigError


def dump_config(config: Config) -> str:
    """Return the resolved settings as YAML; `load_config` reads back the same settings."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, allow_unicode=True, sort_keys=False)


def parse_config(text: str) -> Config:
    """Parse the output of `dump_config`; a setting that did not exist then gets its default."""
    return Config.model_validate_json(json.dumps(yaml.load(text, Loader=Loader)))


DEEPEST = 50
"""Deepest nesting of YAML; settings need a few levels."""


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is a string (and Norwegian), `1e-3` a number.

    Aliases, and nesting deeper than `DEEPEST`, raise an error.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "aliases are not allowed; write the value out", mark)
        if self.depth == DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class Dumper(yaml.SafeDumper):
    """Quotes strings that `Loader` would read as another type."""


NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", NUMBER, list("-+0123456789.")),
)
for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


class Written:
    """Entries as they were written, and the place of each: `run.yaml:3` or `--set seed=1`."""

    def __init__(self, where: str):
        self.where = where
        self.entries: dict[str, Any] = {}
        self.places: dict[tuple, str] = {}
        self.faults: list[tuple[tuple, str]] = []

    def place(self, path: tuple, label: str) -> None:
        """Record the place of an entry, drop all places below it, and keep the order of writing."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = label

    def at(self, path: tuple) -> str:
        """Return where the path was written, else an entry below it, else an entry above it."""
        known = self._nearest(path)
        return self.where if known is None else self.places[known]

    def order(self, path: tuple) -> int:
        known = self._nearest(path)
        return -1 if known is None else list(self.places).index(known)

    def _nearest(self, path: tuple) -> tuple | None:
        while path:
            if path in self.places:
                return path
            if below := [known for known in self.places if known[: len(path)] == path]:
                return below[-1]
            path = path[:-1]
        return None

    def override(self, override: str) -> None:
        """Apply a `--set` override.

        Raises:
            ConfigError: It is not written as name=value, or something in its way is not a mapping.
        """
        name, equals, value = override.partition("=")
        label = label_of(override)
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f"{label}: write it as name=value, for example --set distill.epochs=2")
        entries = self.entries
        for depth, parent in enumerate(path[:-1], start=1):
            below = entries.get(parent)
            if below is None:
                below = entries[parent] = {}
            if not isinstance(below, dict):
                above = ".".join(path[:depth])
                raise ConfigError(f"{label}: {above} is not a mapping; write --set {above}=value")
            entries = below
        try:
            entries[path[-1]] = yaml.load(value, Loader)  # a SafeLoader
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a number with too many digits
            raise ConfigError(f"{label}: the value is not YAML ({_problem(error)}); quote it") from None
        self.place(path, label)


def label_of(override: str) -> str:
    """Return an override as it was written, without a value that may contain a key."""
    name = override.partition("=")[0]
    return f"--set {name}=…" if re.search(r"key_env|://\S*@", override) else f"--set {override}"


def read_entries(path: Path) -> Written:
    """Read the entries of a file, and where each was written.

    Raises:
        ConfigError: The file does not exist, cannot be read, or does not contain settings.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder without config.yaml; name a YAML file of settings")
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "name a YAML file of settings"
        raise ConfigError(f"{path} does not exist; {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8") from None
    written = Written(str(path))
    try:
        node = yaml.compose(text, Loader)
        entries = yaml.load(text, Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{at}: not YAML ({_problem(error)}); write settings as name: value") from None
    if entries is None:
        entries = {}
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: not a mapping; write settings as name: value")
    written.entries = entries
    _note_lines(node, (), written)
    return written


def load_yaml(source: Path | Traversable) -> Any:
    """Read the user's YAML file of something else than settings.

    Raises:
        ConfigError: It is not UTF-8 or not YAML.
    """
    try:
        return yaml.load(source.read_text("utf-8"), Loader)  # a SafeLoader
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8; convert the file to UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not YAML: {_problem(error)}") from None


def _problem(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())


def _note_lines(node: yaml.Node, path: tuple, written: Written) -> None:
    pairs: list[tuple[Any, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(number, value, value) for number, value in enumerate(node.value)]
    for part, begins, value in pairs:
        here, label = (*path, part), f"{written.where}:{begins.start_mark.line + 1}"
        if here in written.places:
            text = f"{label}: {dotted(here)} was already set at {written.places[here]}; keep one of them"
            written.faults.append((here, text))
        written.places[here] = label
        _note_lines(value, here, written)


def dotted(path: tuple) -> str:
    """Return a setting's name as in --set."""
    # "[key]" is pydantic's last part where a mapping's key is wrong
    return ".".join(str(part) for part in path if not isinstance(part, int) and part != "[key]")
