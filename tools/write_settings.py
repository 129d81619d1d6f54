"""Generate the page of all settings from their definitions: `python -m tools.write_settings`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from isogloss.config import Config
from isogloss.config.defaults import NAMES

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# All settings

Every setting of a YAML file or `--set`, with its default. † means that the value is the demo model's; other
models have [their own default](guide/model.md#defaults-that-follow-the-model). Written by `python -m
tools.write_settings` from `isogloss/config`.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, _table("The run", _rows(Config, "", deep=False))]
    for name in ("languages", "tune", "distill", "evaluate"):
        parts.append(_table(f"`{name}`", _rows(_of(Config, name), f"{name}.")))
    parts += _by_type("data", _of(Config, "data"))
    parts += [_table("`parallel_text`", _rows(one, "")) for one in _models(_of(Config, "parallel_text"))]
    parts += _by_type("distill.teacher", _of(_of(Config, "distill"), "teacher"))
    return "\n".join(part for part in parts if part)


def _of(model: Any, name: str) -> Any:
    return model.model_fields[name].annotation


def _by_type(name: str, annotation: Any) -> Iterator[str]:
    """Yield a table per type of a setting discriminated by `type`; types with the same rows share one."""
    alike: dict[tuple, list[str]] = {}
    for kind in _models(annotation):
        rows = tuple(_rows(kind, "", skip=("type",)))
        alike.setdefault(rows, []).append(f"`{kind.model_fields['type'].default}`")
    return (_table(f"`{name}` of type {', '.join(kinds)}", rows) for rows, kinds in alike.items())


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the distinct settings classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(model for one in get_args(annotation) for model in _models(one)))


def _rows(
    model: Any, prefix: str, *, deep: bool = True, skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        kinds = _models(field.annotation)
        if name in skip or (not deep and kinds):
            continue
        if len(kinds) == 1 and get_origin(field.annotation) is not tuple:
            yield from _rows(kinds[0], f"{prefix}{name}.")
            continue
        full = f"{prefix}{name}"
        default = "required" if field.is_required() else _plain(field.get_default(call_default_factory=True))
        yield f"`{full}`", default + "†" * (full in NAMES), _told(field)


def _told(field: Any) -> str:
    told = " ".join((field.description or "").split())
    choices = [str(one) for one in _choices(field.annotation)]
    listed = ", ".join(f"`{one}`" for one in choices if f"`{one}`" not in told)
    some = "Any" if get_origin(field.annotation) is tuple else "One"
    return f"{told} {some} of {listed}." if listed and len(choices) > 1 else told


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, tuple) or hasattr(annotation, "__metadata__"):
        return [choice for one in get_args(annotation) for choice in _choices(one)]
    return []


def _plain(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return str(getattr(value, "type", ""))
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value == {} else f"{value:g}" if isinstance(value, float) else str(value)


def _table(title: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"| {name} | {default} | {told.replace('|', chr(92) + '|')} |" for name, default, told in rows]
    if not lines:
        return ""
    return "\n".join(
        (f"## {title}", "", "| setting | default | what it is |", "| --- | --- | --- |", *lines, "")
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
