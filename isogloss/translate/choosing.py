"""Who translates, from the options of the command line, which are checked before a model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from pydantic import ValidationError

from isogloss.config import Endpoint
from isogloss.errors import ConfigError
from isogloss.translate.answers import Translator
from isogloss.translate.prompt import load_prompt

TEXTS = 8
"""Texts of a request, unless said otherwise."""


def served(
    url: str,
    model: str,
    prompt: Path | None,
    texts: int | None,
    more: Mapping[str, Any],
    *,
    back: bool = False,
) -> Translator:
    """A chat model behind an endpoint.

    Args:
        back: Whether it will also be asked to translate into English.
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
    said = load_prompt(prompt)
    if back and "source" not in Template(said.system + said.user).get_identifiers():
        raise ConfigError(
            f"--round-trip: {prompt} names no $source, so it would tell to translate from English; write "
            "$source in its place, or leave --round-trip out"
        )
    return Served(settings, said, texts or TEXTS)


def local(model: str, codes: Sequence[str], examples: Path | None, *, back: bool = False) -> Translator:
    """A model on this machine: of an encoder and a decoder, or a base that is shown examples.

    Raises:
        ConfigError: It cannot be loaded or does not know a language, or examples are missing or of no effect.
    """
    from isogloss.data.formats import layouts
    from isogloss.translate.local import Seq2Seq, Shown, is_seq2seq

    if is_seq2seq(model):
        if examples is not None:
            raise ConfigError("--examples: a seq2seq model is shown none; leave it out")
        return Seq2Seq(model, codes, back=back)
    if examples is None:
        raise ConfigError(
            f"--model: {model} is no translator by itself; name parallel data in --examples, of which it is "
            "shown some, or an endpoint in --url"
        )
    return Shown(model, layouts.read(examples)[1], codes)


def likeness(base: str) -> Callable[..., list[float]]:
    """How alike both sides of a pair are to a base."""
    from isogloss.evaluate.retrieval import Model
    from isogloss.model.load import load_model, load_tokenizer, pick_dtype
    from isogloss.translate.likeness import scorer

    return scorer(Model(load_model(base, pick_dtype("auto")), load_tokenizer(base)))


def refuse_of_url(given: Mapping[str, Any]) -> None:
    """Options of an endpoint, where there is none.

    Raises:
        ConfigError: One is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect without --url; leave it out")


def kept_by(prompt: Path | None) -> Sequence[str]:
    """The regular expressions of what must stand in a translation as in English."""
    return load_prompt(prompt).keep
