"""Writes docs/reference.md: every command with its options, taken from the commands themselves.

python tools/reference.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro

from bridge import config as configs
from bridge.files import write_text

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "Teacher": ("teacher_torch.extract",),
    "Tasks and features": ("bridge.arc.__main__", "bridge.store.__main__", "bridge.rearc"),
    "Training": ("student_jax.train", "student_jax.checkpoints"),
    "Answers": (
        "student_jax.solve",
        "student_jax.adapt",
        "student_jax.serve",
        "student_jax.client",
    ),
    "What they are worth": ("student_jax.evaluate", "student_jax.similarity", "student_jax.report"),
    "In and out": ("student_jax.export", "bridge.torch_export", "student_jax.import_weights"),
}
HEAD = """# Reference

Every command, every option. This page is written by `python tools/reference.py` from the commands'
own configs; a test fails when it is stale. What belongs together stands in `--help`, too.

All commands take `--config FILE`, a YAML file whose keys are the options below (`optim.peak_lr` is
`optim:` with `peak_lr:` inside); the command line overrides it. Exit codes: 0 done, 2
refused with one line that says why, 130 stopped.
"""


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Where to."""

    out: Path = ROOT / "docs/reference.md"


def main(config: ReferenceConfig) -> None:
    """Write the page that lists every command with its options."""
    write_text(config.out, reference())


def reference() -> str:
    """Returns the page."""
    parts = [HEAD]
    for title, modules in COMMANDS.items():
        parts.append(f"## {title}\n")
        parts += [describe(module) for module in modules]
    return "\n".join(parts)


def config_of(module: str) -> tuple[Any, type]:
    """Returns a command's main function and the config that it takes."""
    main = importlib.import_module(module).main
    return main, typing.get_type_hints(main)["config"]


def describe(module: str) -> str:
    """Returns one command's part of the page."""
    main, config = config_of(module)
    rows = "\n".join(
        f"| {name} | {kind} | {default} | {text} |" for name, kind, default, text in options(config)
    )
    return (
        f"### python -m {module.removesuffix('.__main__')}\n\n"
        f"{inspect.cleandoc(main.__doc__ or '')}\n\n"
        f"| option | takes | default | |\n|---|---|---|---|\n{rows}\n"
    )


def options(config: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields name, type, default and text of each option; those of parts after their own."""
    hints, texts, inner = typing.get_type_hints(config, include_extras=True), {}, []
    for kind in reversed(config.__mro__):
        texts |= field_texts(kind) if is_dataclass(kind) else {}
    for field in fields(config):
        hint = hints[field.name]
        if is_dataclass(hint):
            inner.append((hint, f"{prefix}{field.name}."))
            continue
        positional = tyro.conf.Positional in getattr(hint, "__metadata__", ())
        name = field.name.upper() if positional else f"--{prefix}{field.name}"
        yield f"`{name}`", takes(hint), default_of(field), texts.get(field.name, "")
    for hint, longer in inner:
        yield from options(hint, longer)


def field_texts(config: type) -> dict[str, str]:
    """Returns the text under each field of a class, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    found, last = {}, None
    for statement in typing.cast(ast.ClassDef, body).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            last = statement.target.id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and last:
            text = " ".join(str(statement.value.value).split())
            found[last], last = text.replace("|", r"\|"), None
        else:
            last = None
    return found


def takes(hint: Any) -> str:
    """Returns what an option takes, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return takes(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"any number of: {takes(inner[0])}"
    if inner:  # X | None
        return ", ".join(takes(each) for each in inner if each is not type(None)) + ", `None`"
    words = {Path: "path", str: "text", int: "integer", float: "number", bool: "`True`, `False`"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def default_of(field: Field[Any]) -> str:
    """Returns an option's default as it would be typed; nothing where it must be given."""
    value = field.default
    if value is MISSING:
        if field.default_factory is MISSING:
            return "must be given"
        value = field.default_factory()
    if isinstance(value, Path) and value.is_absolute():
        value = value.relative_to(ROOT)
    if isinstance(value, tuple):
        return " ".join(f"`{each}`" for each in value) or "none"
    return f"`{value}`"


if __name__ == "__main__":
    configs.command(main, ReferenceConfig)
