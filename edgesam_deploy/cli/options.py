"""Options that several commands share, and those of the targets, which are read from their dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from edgesam_deploy.cli import names
from edgesam_deploy.errors import EdgeSamDeployError, UsageError
from edgesam_deploy.targets import TARGETS, target_class, target_names

PANEL = "Options of the target"

Model = Annotated[str, typer.Argument(help="Model name, see: edgesam-deploy models", autocompletion=names.models)]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Target name, see: edgesam-deploy targets", autocompletion=names.targets)
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="A .pth or .safetensors file, or a name of: edgesam-deploy fetch. Without one: random weights; for "
        "edge_sam_demo those that come along."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the random weights. Default 0.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model frame, a multiple of 64. Default 1024.", show_default=False)
]
Config = Annotated[
    Path | None, typer.Option(help="JSON file with sizes that have no name; for cwsam* also its authors' model_args.")
]


def target_options() -> dict[str, tuple[Field[Any], Any, list[str]]]:
    """Option name -> its field, its type, and the targets that have it."""
    found: dict[str, tuple[Field[Any], Any, list[str]]] = {}
    for target in target_names():
        try:
            cls = target_class(target)
        except EdgeSamDeployError:
            if target in TARGETS:
                raise
            continue  # a broken plug-in is told to those who ask for it, and by: targets, doctor
        hints = get_type_hints(cls)
        for field in cls.option_fields():
            first, kind, targets = found.get(field.name, (field, hints[field.name], []))
            found[field.name] = first, _either(kind, hints[field.name]), [*targets, target]
    return found


def _either(one: Any, other: Any) -> Any:
    """The type that takes what either target takes; what its own target refuses, the target says."""
    if get_origin(one) is Literal and get_origin(other) is Literal:
        return Literal[tuple(dict.fromkeys((*get_args(one), *get_args(other))))]
    return one


def with_target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` every target's options. It receives those that were given as keyword ``options``."""
    known = target_options()
    base = inspect.signature(command)
    own = [p for p in base.parameters.values() if p.name != "options"]
    extra = [_parameter(name, *entry) for name, entry in known.items()]

    def wrapper(**values: Any) -> None:
        given = {name: values.pop(name) for name in known}
        options = {name: parsed(name, known[name][1], value) for name, value in given.items() if value is not None}
        command(**values, options=options)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    hints = {k: v for k, v in get_type_hints(command, include_extras=True).items() if k not in ("options", "return")}
    wrapper.__annotations__ = {**hints, **{p.name: p.annotation for p in extra}}
    own = [p.replace(annotation=hints[p.name]) for p in own]
    wrapper.__signature__ = inspect.Signature(own + extra)  # type: ignore[attr-defined]
    return wrapper


def _parameter(name: str, field: Field[Any], kind: Any, targets: list[str]) -> inspect.Parameter:
    default = "" if field.default in (None, False) else f" Default {field.default}."
    text = field.metadata["help"] + default + ("" if len(targets) >= len(TARGETS) else f" ({', '.join(targets)})")
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        annotation: Any = Annotated[
            bool | None, typer.Option(flag, help=text, rich_help_panel=PANEL, show_default=False)
        ]
    else:
        metavar = "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else "N"
        option = typer.Option(flag, help=text, metavar=metavar, rich_help_panel=PANEL, show_default=False)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parsed(name: str, kind: Any, value: Any) -> Any:
    """A value from the command line in the type of its field. Raises UsageError naming the option."""
    if not isinstance(value, str):
        return value
    flag = "--" + name.replace("_", "-")
    choices = _choices(kind)
    if value in choices:
        return value
    if int in (kind, *get_args(kind)):
        try:
            return int(value)
        except ValueError as e:
            wanted = " or ".join(["a number", *map(repr, choices)])
            raise UsageError(f"{flag} {value}: must be {wanted}") from e
    if get_origin(kind) is Literal:
        raise UsageError(f"{flag} {value}: must be one of {', '.join(map(str, choices))}")
    return value


def _choices(kind: Any) -> tuple[str, ...]:
    """The words a field takes: of a Literal, or of the Literal inside a union."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in (get_args(part) if get_origin(part) is Literal else ()))


def config_changes(path: Path | None, image_size: int | None) -> dict[str, Any]:
    """Fields of the configuration to change: of the ``--config`` file, and ``--image-size``. Raises UsageError."""
    changes = {} if path is None else _read_object(path)
    return changes if image_size is None else {**changes, "image_size": image_size}


def _read_object(path: Path) -> dict[str, Any]:
    from json import JSONDecodeError, loads

    try:
        content = loads(path.read_text("utf-8"))
    except OSError as e:
        raise UsageError(f"--config {path}: {e.strerror}") from e
    except (JSONDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"--config {path}: not a JSON file ({e})") from e
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected an object of fields, got {type(content).__name__}")
    return content
