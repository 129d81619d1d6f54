"""Translation prompt for a chat model: the entries of `prompt.yaml`, any of which a file may replace."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from isogloss.config.yaml_io import load_yaml
from isogloss.data.formats.lines import nearest
from isogloss.data.text import canonical
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE, UnknownLanguageError, languages, resolve

Messages = list[dict[str, str]]
_NAMES = {"source", "language", "autonym", "code", "script", "glossary", "texts"}


@dataclass(frozen=True)
class Prompt:
    """The entries of `prompt.yaml`, which documents them; glossary languages are isogloss codes."""

    system: str
    user: str
    glossary_heading: str
    glossary: Mapping[str, Mapping[str, str]]
    keep: Sequence[str]
    request: Mapping[str, Any]

    def messages(self, texts: Sequence[str], code: str, tag: str, source: str = SOURCE) -> Messages:
        """Return the chat messages that request translations of the texts.

        Args:
            code: isogloss code of the target language.
            tag: Name of the tags around each text, followed by the text's number.
            source: isogloss code of the source language.
        """
        one = languages()[code]
        there = "\n".join(texts).casefold()
        terms = {en: own for en, own in self.glossary.get(code, {}).items() if _word(en, there)}
        values = {
            "source": languages()[source].name,
            "language": one.name,
            "autonym": one.autonym,
            "code": one.code,
            "script": one.script,
            "texts": "\n".join(f"<{tag}{n}>{text}</{tag}{n}>" for n, text in enumerate(texts, start=1)),
        }
        heading = Template(self.glossary_heading).substitute({**values, "glossary": ""})
        lines = ["", heading, *(f"{en}: {own}" for en, own in terms.items())]
        values["glossary"] = "\n".join(lines) if terms else ""
        said = {"system": self.system, "user": self.user}
        filled = {role: Template(text).substitute(values).strip() for role, text in said.items()}
        if tag != "t":
            filled["system"] = re.sub(r"(</?)t(?=\d>)", rf"\g<1>{tag}", filled["system"])
        return [{"role": role, "content": text} for role, text in filled.items() if text]


def load_prompt(path: Path | None = None) -> Prompt:
    """Load the default prompt, with entries replaced by those in a file.

    Raises:
        ConfigError: The file is not YAML, or an entry is unknown, has the wrong type, or contains an unknown
            language, an invalid pattern or an unknown $name.
    """
    entries: dict[str, Any] = load_yaml(resources.files("isogloss.translate") / "prompt.yaml")
    if path is None:
        return Prompt(**entries)
    given = load_yaml(path)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: contains no entries; give some of {', '.join(entries)}")
    for key, value in given.items():
        if key not in entries:
            raise ConfigError(f"{path}: {key!r} is not an entry; {nearest(str(key), list(entries))}")
        if not isinstance(value, type(entries[key])):
            raise ConfigError(
                f"{path}: {key} is a {type(value).__name__}, not a {_KINDS[type(entries[key])]}"
            )
    prompt = Prompt(**{**entries, **given})
    for field in fields(prompt):
        if isinstance(text := getattr(prompt, field.name), str):
            _check_template(text, field.name, path)
    if "$texts" not in prompt.user and "${texts}" not in prompt.user:
        raise ConfigError(f"{path}: user lacks $texts, the placeholder for the texts to translate")
    for pattern in prompt.keep:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(f"{path}: keep: {pattern!r} is not a regular expression ({error})") from None
    return Prompt(**{**vars(prompt), "glossary": _glossary(prompt.glossary, path)})


_KINDS = {str: "text", dict: "mapping", list: "list"}


def _check_template(text: str, name: str, path: Path) -> None:
    try:
        Template(text).substitute(dict.fromkeys(_NAMES, ""))
    except KeyError as error:
        raise ConfigError(
            f"{path}: {name}: ${error.args[0]} is unknown; available: {', '.join(sorted(_NAMES))}"
        ) from None
    except ValueError:
        raise ConfigError(f"{path}: {name}: write a literal dollar sign as $$") from None


def _glossary(given: Mapping[Any, Any], path: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for language, terms in given.items():
        try:
            code = resolve(str(language)).code
        except UnknownLanguageError as error:
            raise ConfigError(f"{path}: glossary: {error}") from None
        if not isinstance(terms, dict) or not all(isinstance(t, str) for pair in terms.items() for t in pair):
            raise ConfigError(f"{path}: glossary: {language} must map English terms to texts")
        own = {canonical(term): canonical(text) for term, text in terms.items()}
        found.setdefault(code, {}).update(own)  # a language may be named by several of its codes
    return found


def _word(term: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(term.casefold())}(?!\w)", text) is not None
