"""Build the translator from command-line options, which are checked before any model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from pydantic import ValidationError

from isogloss.config import Endpoint
from isogloss.errors import ConfigError
from isogloss.translate.answers import Translator
from isogloss.translate.prompt import load_prompt

TEXTS = 8
"""Default number of texts per request."""


def served(
    url: str,
    model: str,
    prompt: Path | None,
    texts: int | None,
    more: Mapping[str, Any],
    *,
    back: bool = False,
) -> Translator:
    """Return a translator that calls a chat model behind an endpoint.

    Args:
        back: True if it will also translate back into English.
        more: Further settings of `Endpoint`.

    Raises:
        ConfigError: An option is invalid, or the client packages for endpoints are not installed.
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
            "url": "must be http(s)://…/v1, without a user name or key",
            "key_env": "must be the name of an environment variable, not the key itself",
        }.get(str(fault["loc"][0]), fault["msg"])
        raise ConfigError(f"{option}: {what}") from None
    said = load_prompt(prompt)
    if back and "source" not in Template(said.system + said.user).get_identifiers():
        raise ConfigError(
            f"--round-trip: {prompt} does not use $source, so back-translation would have the wrong source "
            "language; write $source for the language translated from, or leave --round-trip out"
        )
    return Served(settings, said, texts or TEXTS)


def local(model: str, codes: Sequence[str], examples: Path | None, *, back: bool = False) -> Translator:
    """Return a translator that runs on this machine: a seq2seq model, or a few-shot prompted base model.

    Raises:
        ConfigError: The model cannot be loaded or does not support a language, or `examples` is missing or
            has no effect.
    """
    from isogloss.data.formats import layouts
    from isogloss.translate.local import Seq2Seq, Shown, is_seq2seq

    if is_seq2seq(model):
        if examples is not None:
            raise ConfigError("--examples: a seq2seq model uses no examples; leave it out")
        return Seq2Seq(model, codes, back=back)
    if examples is None:
        raise ConfigError(
            f"--model: {model} is not a translation model; give parallel data for few-shot prompting in "
            "--examples, or an endpoint in --url"
        )
    return Shown(model, layouts.read(examples)[1], codes)


def likeness(base: str) -> Callable[..., list[float]]:
    """Return a function that scores how similar the two sides of a pair are to a base model.

    The model is loaded when it is first called.

    Raises:
        ConfigError: The model has no tokenizer.
    """
    from isogloss.evaluate.retrieval import Model
    from isogloss.model.load import load_model, load_tokenizer, pick_dtype
    from isogloss.translate.likeness import scorer

    tokenizer = load_tokenizer(base)
    load = cache(lambda: scorer(Model(load_model(base, pick_dtype("auto")), tokenizer)))
    return lambda *pairs: load()(*pairs)


def refuse_of_url(given: Mapping[str, Any]) -> None:
    """Reject endpoint options given without an endpoint.

    Raises:
        ConfigError: Any of them is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect without --url; leave it out")
