"""The walk over the leaves of a settings tree: the one place that turns it into flags and forms.

A `Leaf` says all that a reader of settings needs: dotted name, type, bounds, choices, help. `nest`
goes back from dotted names to the tree, and `problems_of` from pydantic's errors to dotted names.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer.errors import Problem

Kind = Literal["text", "integer", "number", "switch", "choice", "path", "texts"]


@dataclass(frozen=True)
class Leaf:
    """One setting, as its readers see it.

    `minimum` and `maximum` are inclusive unless the matching `_excluded` is true.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    section_help: str
    optional: bool
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    minimum_excluded: bool = False
    maximum: float | None = None
    maximum_excluded: bool = False
    multiple_of: float | None = None

    @property
    def section(self) -> str:
        """The part of the name before the last dot."""
        return self.name.rpartition(".")[0]

    @property
    def label(self) -> str:
        """The last part of the name in words: `learning_rate` becomes `Learning rate`."""
        return self.name.rpartition(".")[2].replace("_", " ").capitalize()

    @property
    def range(self) -> str:
        """The bounds in words, empty if there are none."""
        parts = []
        if self.minimum is not None:
            parts.append(f"{'above' if self.minimum_excluded else 'from'} {self.minimum:g}")
        if self.maximum is not None:
            parts.append(f"{'below' if self.maximum_excluded else 'to'} {self.maximum:g}")
        return " ".join(parts)


def leaves(
    model: type[BaseModel], prefix: str = "", default: BaseModel | None = None, help: str = ""
) -> Iterator[Leaf]:
    """Every setting of a tree, in the order in which it is written down.

    Fields with a single possible value, such as a format version, are not settings.
    """
    for name, field in model.model_fields.items():
        value = getattr(default, name) if default is not None else field.get_default()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = (field.annotation.__doc__ or "").strip()
            yield from leaves(field.annotation, f"{prefix}{name}.", value, section)
        else:
            leaf = _leaf(f"{prefix}{name}", field, value, help)
            if not (leaf.kind == "choice" and len(leaf.choices) == 0):
                yield leaf


def _leaf(name: str, field: FieldInfo, default: Any, section_help: str) -> Leaf:
    annotation, optional = _without_none(field.annotation)
    kind, choices = _kind(annotation, name)
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        match constraint:
            case annotated_types.Ge(ge=value):
                bounds["minimum"] = value
            case annotated_types.Gt(gt=value):
                bounds |= {"minimum": value, "minimum_excluded": True}
            case annotated_types.Le(le=value):
                bounds["maximum"] = value
            case annotated_types.Lt(lt=value):
                bounds |= {"maximum": value, "maximum_excluded": True}
            case annotated_types.MultipleOf(multiple_of=value):
                bounds["multiple_of"] = value
            case _:  # lengths and patterns bound no slider; pydantic checks them
                continue
    help = " ".join((field.description or "").split())
    return Leaf(name, kind, default, help, section_help, optional, choices, **bounds)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return members[0], True
    return annotation, False


def _kind(annotation: Any, name: str) -> tuple[Kind, tuple[str, ...]]:
    plain: dict[Any, Kind] = {
        str: "text", int: "integer", float: "number", bool: "switch", Path: "path",
    }  # fmt: skip
    if annotation in plain:
        return plain[annotation], ()
    if typing.get_origin(annotation) is Literal:
        values = typing.get_args(annotation)
        if all(isinstance(value, str) for value in values):
            return "choice", values
        if len(values) == 1:  # a format version, which nobody sets
            return "choice", ()
    if typing.get_origin(annotation) is tuple:
        return "texts", ()
    raise TypeError(f"{name}: no reader of settings knows the type {annotation}")


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"optimizer.learning_rate": 1e-4}` becomes `{"optimizer": {"learning_rate": 1e-4}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The reverse of `nest`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def from_text(leaf: Leaf, text: str) -> Any:
    """The value that a person wrote as text: `none` and an empty text are None where allowed."""
    if leaf.optional and text.strip().lower() in ("", "none"):
        return None
    if leaf.kind == "switch":
        return {
            "true": True,
            "yes": True,
            "on": True,
            "false": False,
            "no": False,
            "off": False,
        }.get(text.strip().lower(), text)
    return text  # pydantic reads numbers, paths and choices from text, and says what is wrong


def nearest(name: str, names: Iterator[str] | list[str]) -> str | None:
    """The known name most like a mistyped one, or None if none is like it."""
    names = list(names)
    by_last = {known.rpartition(".")[2]: known for known in names}
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return match[0]
    match = difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    return by_last[match[0]] if match else None


def unknown(name: str, model: type[BaseModel]) -> Problem:
    """The problem of a setting that does not exist, with the nearest one that does."""
    known = [leaf.name for leaf in leaves(model)]
    suggestion = nearest(name, known)
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    return Problem(name, f"there is no such setting{hint}")


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors as problems under dotted names, in one plain sentence each."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        name = ".".join(part for part in detail["loc"] if isinstance(part, str))
        if name in problems:  # a wrong item of a list makes the list wrong too
            continue
        if detail["type"] == "extra_forbidden":
            problems[name] = unknown(name, model)
            continue
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        got = detail["input"]
        shown = "" if isinstance(got, dict | list | tuple) else f" (got {_short(got)})"
        problems[name] = Problem(name, f"{message[:1].lower()}{message[1:]}{shown}")
    return list(problems.values())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
