"""Options of a network's own: a dataclass that its factory declares as `options_class`, read from --model_args.

Fields are bool, int, float, str, tuple or list of these, Literal, or one of them or None; anything else is taken as it is. A
field's help is its metadata's "help". What else may not be, the class says by a ValueError of its __post_init__.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from common.errors import InputError

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def arguments_of(build, given):
    """What a factory finds in options.model_args: its options_class, else a dict; given: as model_arguments takes it.

    Raises ValueError that names the argument.
    """
    values, declared = model_arguments(given), declared_by(build)
    return values if declared is None else _built(declared, values)


def model_arguments(given):
    """The dict of --model_args: a mapping, an options_class, JSON text, or a file of it. Raises ValueError."""
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return dataclasses.asdict(given)
    if isinstance(given, Mapping):
        return dict(given)
    text = (given or "{}").strip()
    try:
        if not text.startswith("{"):
            text = Path(text).read_text()
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"--model_args {given}: neither JSON nor a file of it ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"--model_args {given}: not a mapping of names to values")
    return values


def declared_by(build):
    """The dataclass that a factory declares, or None. Raises ValueError where it is none."""
    declared = getattr(build, "options_class", None)
    if declared is not None and not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        name = getattr(build, "__name__", type(build).__name__)
        raise InputError(f"{name}.options_class is {declared!r}; it is a dataclass")
    return declared


def described(build):
    """(name and kind, help and default) of each option that a factory declares, for --help."""
    declared = declared_by(build)
    if declared is None:
        return []
    types_of, rows = typing.get_type_hints(declared), []
    for field in _fields(declared):
        default = _default(field)
        text = field.metadata.get("help", "")
        rows.append((f"{field.name} {_kind(types_of[field.name])}", f"{text}  [{default}]" if default else text))
    return rows


def _fields(declared):
    return [field for field in dataclasses.fields(declared) if field.init]


def _default(field):
    if field.default is not dataclasses.MISSING:
        return "" if field.default in ("", None) else str(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "required"


def _built(declared, values):
    known = {field.name: field for field in _fields(declared)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"--model_args {name}: no option of this network; {hint}it has {', '.join(known) or 'none'}"
            )
    missing = [name for name, field in known.items() if name not in values and _default(field) == "required"]
    if missing:
        raise InputError(f"--model_args: the network needs {', '.join(missing)}")
    kinds = typing.get_type_hints(declared)
    values = {name: _read(name, value, kinds[name]) for name, value in values.items()}
    try:
        return declared(**values)
    except ValueError as error:
        raise InputError(f"--model_args: {error}") from None


def _read(name, value, kind):
    """The value as a field of that type holds it. Raises ValueError."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return _read(name, value, part)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if any(value == part and type(value) is type(part) for part in parts):
            return value
    elif kind in (tuple, list) or origin in (tuple, list):
        if isinstance(value, (list, tuple)):
            inner = parts[0] if parts and (origin is list or len(set(parts) - {...}) == 1) else typing.Any
            return (origin or kind)(_read(name, item, inner) for item in value)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind not in _KINDS or type(value) is kind:
        return value
    raise InputError(f"--model_args {name}: {value!r} is not {_words(kind)}")


def _words(kind):
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    return _KINDS.get(kind, "a list")


def _kind(kind):
    """As the help says it: INT, A|B."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_kind(part) for part in parts if part is not type(None))
    if origin is typing.Literal:
        return "|".join(map(str, parts))
    return {bool: "BOOL", int: "INT", float: "NUMBER", str: "TEXT"}.get(kind, "A,B,..")
