"""Who translates, from the options of the command line, which are checked before a model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isogloss.config import Endpoint
from isogloss.errors import ConfigError
from isogloss.translate.answers import Translator
from isogloss.translate.prompt import load_prompt

TEXTS = 8
"""Texts of a request, unless said otherwise."""


def served(
    url: str, model: str, prompt: Path | None, texts: int | None, more: Mapping[str, Any]
) -> Translator:
    """A chat model behind an endpoint.

    Args:
        more: Settings of `Endpoint` that are given.

    Raises:
        ConfigError: An option is impossible, or the packages that ask an endpoint are not installed.
    """
    try:
        from isogloss.translate.served import Served
    except ImportError as error:
        raise ConfigError(f"--url needs {error.name}; pip install 'isogloss[teacher]'") from None
    try:
        settings = Endpoint.model_validate({"url": url, "model": model, **more})
    except ValidationError as error:
        fault = error.errors()[0]
        option = "--" + str(fault["loc"][0]).replace("_", "-")
        what = {
            "url": "must be http(s)://… up to and with /v1, without a name or key in it",
            "key_env": "must be the name of an environment variable, not the key itself",
        }.get(str(fault["loc"][0]), fault["msg"])
        raise ConfigError(f"{option}: {what}") from None
    return Served(settings, load_prompt(prompt), texts or TEXTS)


def kept_by(prompt: Path | None) -> Sequence[str]:
    """The regular expressions of what must stand in a translation as in English."""
    return load_prompt(prompt).keep
