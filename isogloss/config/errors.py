"""Turn pydantic's errors into lines: where, what is wrong, and what would be right."""

import difflib
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from isogloss.config.base import Settings, code_of
from isogloss.config.data import ONE, SEVERAL
from isogloss.config.renamed import advice
from isogloss.config.schema import Config
from isogloss.config.yaml_io import NUMBER, Written, dotted

NEVER_SHOWN = {
    "url": "must be http(s)://…/v1, without a user name or key",
    "key_env": "must be the name of an environment variable, not the key itself",
}
"""Settings whose value may contain a key, and what they must be."""


def explained(fault: Any, written: Written, settings: type[Settings] = Config) -> tuple[tuple, str]:
    """Return the path and the message for one of pydantic's errors."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "json_invalid":
        return (), f"{written.where}: a text has half a character (a lone surrogate); write it in UTF-8"
    path, holder, hint = _walk(tuple(part for part in fault["loc"] if part not in (ONE, SEVERAL)), settings)
    if kind == "union_tag_invalid":
        path, hint = (*path, "type"), Literal[tuple(context["expected_tags"].replace("'", "").split(", "))]
        fault = {**fault, "input": fault["input"]["type"]}
    elif kind == "refusal":
        path = (*path, *context["name"].split("."))
    at, name = written.at(path), dotted(path)
    if kind == "extra_forbidden":
        return path, f"{at}: {name} {advice(name) or 'is not a setting' + _instead(path, holder)}"
    if kind == "value_error":
        return path, f"{at}: {name}: {context['error']}"
    if kind == "refusal":
        return path, f"{at}: {name} {context['message']}"
    if kind == "missing":
        return path, f"{at}: {name} is missing; it must be {_describe(hint)}"
    if path[-1] in NEVER_SHOWN:
        return path, f"{at}: {name} {NEVER_SHOWN[path[-1]]}"
    given = json.dumps(fault["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 60 else given[:59] + "…"
    holds, must = ("contains", "each must be") if isinstance(path[-1], int) else ("is", "it must be")
    return path, f"{at}: {name} {holds} {given}; {must} {_describe(hint)}{_mend(fault['input'], hint)}"


def _walk(loc: tuple, settings: type[Settings]) -> tuple[tuple, type[Settings] | None, Any]:
    """Return pydantic's path as the user wrote it, the settings class that holds its last part, and the type
    hint of that part.

    Pydantic inserts a union's tag into the path (data.massive.foo): it selects the class here and is dropped.
    """
    path: list = []
    holder: type[Settings] | None = None
    hint: Any = settings
    parts = iter(loc)
    for part in parts:
        holder = hint if isinstance(hint, type) and issubclass(hint, Settings) else None
        path.append(part)
        if holder is not None:
            hint = _hints(holder).get(part)
        else:
            kinds = [a for a in get_args(_bare(hint)) if a is not Ellipsis]
            # In a mapping, the last type is that of the values; an error in a key has its own path part.
            hint = kinds[-1] if kinds else None
        options = _options(hint)
        if len(options) > 1 and (tag := next(parts, None)) is not None:
            if isinstance(tag, int):  # index into a list of such settings
                path.append(tag)
                if (tag := next(parts, None)) is None:
                    break
            hint = next(o for o in options if o.model_fields["type"].default == tag)
        elif options:
            hint = options[0] if len(options) == 1 else hint
        elif len(_kinds(hint)) > 1:
            next(parts, None)  # pydantic's name of one of the types
    return tuple(path), holder, hint


def _hints(settings: type[Settings]) -> dict[str, Any]:
    return {
        name: Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[misc]
        for name, field in settings.model_fields.items()
    }


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a union other than None; none for any other hint."""
    bare = _bare(hint)
    union = get_origin(bare) in (Union, types.UnionType)
    return [kind for kind in get_args(bare) if kind is not types.NoneType] if union else []


def _options(hint: Any) -> list[type[Settings]]:
    """Return the settings classes that a hint allows, directly or as entries of a list."""
    hint = _bare(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return list(dict.fromkeys(option for one in get_args(hint) for option in _options(one)))
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        several = _options(get_args(hint)[0])
        return several if len(several) > 1 else []
    return [hint] if isinstance(hint, type) and issubclass(hint, Settings) else []


def _describe(hint: Any) -> str:
    """Describe what a value must be."""
    bare, limits = _bare(hint), {}
    for note in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if getattr(note, "func", None) is code_of:
            return "a language code such as sw"
        for limit in getattr(note, "metadata", None) or [note]:
            limits |= {
                k: v
                for k in ("ge", "gt", "le", "lt", "min_length")
                if (v := getattr(limit, k, None)) is not None
            }
    if _options(hint)[1:]:
        return "a mapping: a type and the settings of that type"
    if kinds := _kinds(hint):
        literal = [str(option) for kind in kinds for option in _literal(kind)]
        return _or([*literal, *(_describe(kind) for kind in kinds if not _literal(kind))])
    if get_origin(bare) is Literal:
        return _or([str(option) for option in get_args(bare)])
    if get_origin(bare) is tuple:
        return "a list with at least one entry" if "min_length" in limits else "a list"
    if get_origin(bare) is dict:
        return "a mapping, name: value"
    if isinstance(bare, type) and issubclass(bare, Settings):
        return f"a mapping of the settings {', '.join(bare.model_fields)}"
    if bare in (int, float):
        return ("a whole number" if bare is int else "a number") + _range(limits, whole=bare is int)
    if bare is str:
        return "a non-empty string" if "min_length" in limits else "a string"
    return "true or false" if bare is bool else "a path"


def _literal(hint: Any) -> tuple:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _range(limits: dict[str, Any], *, whole: bool) -> str:
    low = f" of at least {limits['ge']}" if "ge" in limits else ""
    low = f" above {limits['gt']}" if "gt" in limits else low
    if "lt" in limits and not whole:
        return f"{low} and below {limits['lt']}"
    most = limits["lt"] - 1 if "lt" in limits else limits.get("le")
    if most is None:
        return low
    return f" between {limits['ge']} and {most}" if "ge" in limits else f"{low} and at most {most}"


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _mend(given: Any, hint: Any) -> str:
    """Suggest a fix for a common mistake."""
    bare = _bare(hint)
    if get_origin(bare) is Literal and isinstance(given, str):
        near = difflib.get_close_matches(given, map(str, get_args(bare)), n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if bare in (int, float) and isinstance(given, str) and re.fullmatch(NUMBER, given):
        return ", without quotes"
    if get_origin(bare) is tuple and isinstance(given, str | int):
        return f", for example [{given}]"
    if bare in (str, Path) and isinstance(given, int | float):
        return "; put it in quotes"
    return ""


def _instead(path: tuple, holder: type[Settings] | None) -> str:
    """Suggest a name for an unknown setting: the closest here, the same name elsewhere, or all names here."""
    if holder is None:
        return ""
    typed = holder.model_fields.get("type")
    of = next((part for part in reversed(path[:-1]) if isinstance(part, str)), "")
    kind = f" of {of} type {typed.default}" if typed and isinstance(typed.default, str) else ""
    known, word = list(holder.model_fields), str(path[-1])
    if near := difflib.get_close_matches(word, known, n=1):
        return f"{kind}; did you mean {near[0]}?"
    names = (name for name in _all_names(Config, "") if name != dotted(path))
    if elsewhere := [name for name in names if name.rpartition(".")[2] == word]:
        return f"{kind}; did you mean {_or(elsewhere)}?"
    return f"{kind}; valid settings are {', '.join(known)}"


def _all_names(settings: type[Settings], prefix: str) -> Iterator[str]:
    for name, hint in _hints(settings).items():
        yield prefix + name
        for option in _options(hint)[:1]:
            yield from _all_names(option, f"{prefix}{name}.")
