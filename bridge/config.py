"""Configs: one frozen dataclass per command, one YAML file per run, dotted overrides.

    python -m student_jax.train --config configs/x.yaml --optim.peak_lr 3e-4

Order of precedence: the command line, then the file, then the dataclass' defaults. The resolved
config is written beside every output and is itself a valid `--config`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import math
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from bridge.errors import InputError
from bridge.files import write_text

C = TypeVar("C")


def command(main: Callable[[C], None], config_type: type[C], *, resumes: bool = False) -> None:
    """Runs a command: parses `sys.argv` into its config, says bad input in one line.

    Exits with 2 on bad input and 130 when interrupted, by Ctrl-C or SIGTERM alike.

    Args:
        main: does it.
        config_type: its config.
        resumes: whether it goes on from where it was interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(parse(config_type, sys.argv[1:], main.__doc__))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        goes_on = "; goes on when given again" if resumes else ""
        print(f"\nstopped{goes_on}", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


def parse(config_type: type[C], args: Sequence[str], description: str | None = None) -> C:
    """Returns the config that a command line asks for; `--config PATH` may stand anywhere in it."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    known, rest = peek.parse_known_args(args)
    text = inspect.cleandoc(description or "")
    spec = sys.modules["__main__"].__spec__  # set when run with python -m
    return tyro.cli(
        config_type,
        prog=f"python -m {spec.name.removesuffix('.__main__')}" if spec else None,
        use_underscores=True,  # flags are spelt as the keys of the YAML file
        args=rest,
        default=load(config_type, known.config) if known.config else tyro.MISSING_NONPROP,
        description=f"{text}\n\n--config PATH reads a YAML file first; flags override it.".strip(),
        # Every override has the one form `--a.b VALUE`, booleans too.
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    )


def load(config_type: type[C], path: Path) -> C:
    """Reads a YAML file into a config.

    Raises:
        InputError: naming the file, the dotted key, what was expected, and the nearest known key.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = " ".join(str(error).split())
        raise InputError(f"--config {path}: expected YAML, got: {fault[:160]}") from None
    try:
        return from_dict(config_type, {} if value is None else value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def save(config: Any, path: Path) -> None:
    """Writes a config as YAML that `load` reads back as an equal config."""
    write_text(path, to_yaml(config))


def to_yaml(config: Any) -> str:
    """Returns the text that `save` writes."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config as plain dicts, lists, strings and numbers."""
    return _plain(asdict(config))


def from_dict(config_type: type[C], value: dict[str, Any]) -> C:
    """Returns the config that `to_dict` was given.

    Raises:
        InputError: as `load`.
    """
    return _build(config_type, value, "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(config_type: type[C], value: Any, where: str) -> C:
    """Makes a dataclass from a dict; `where` is the dotted key so far, ending in a dot."""
    if not isinstance(value, dict):
        raise InputError(f"{where[:-1] or 'config'}: expected keys and values, got {value!r}")
    hints = typing.get_type_hints(config_type)
    known = {field.name: field for field in fields(config_type)}  # pyright: ignore[reportArgumentType]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{where}{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown key '{where}{key}'; {hint}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"missing key '{where}{name}'")
    made = {key: _convert(hints[key], item, f"{where}{key}") for key, item in value.items()}
    try:
        return config_type(**made)
    except ValueError as error:
        raise InputError(f"{where}{error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` as the type that `hint` names, or raises naming the dotted key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    if origin in (types.UnionType, typing.Union):  # X | None
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else _convert(inner[0], value, where)
    if origin is Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
        hint_text = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: expected one of {list(arguments)}, got {value!r}{hint_text}")
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float, str):
        with contextlib.suppress(ValueError):
            number = float(value)  # YAML reads 1e-3 as a string
            if math.isfinite(number):
                return number
    elif type(value) is hint:  # exact: YAML's `true` is no int
        return value
    raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
