"""Why a config was refused, in one line: the key, class or value, the file and line it stands in, the nearest spelling."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import nearest

Schema = dict[str, type]
"""The class whose constructor a section of the config fills, by the section's name."""

PLAIN_KEYS = ("model", "seed_everything", "ckpt_path", "config", "print_config", "verbose", "weights_only", "help")


@dataclass(frozen=True, slots=True)
class Given:
    """One value of a config: its path (`data`, `size`), the value, and where it stands."""

    path: tuple[str, ...]
    value: Any
    place: str


def diagnose(
    argv: list[str], schema: Schema, models: dict[str, type], variables: Mapping[str, str] | None = None
) -> str | None:
    """The first mistake in the environment, config files and options of a command, told in one line; None when none is seen.

    Args:
        argv: the command's arguments.
        schema: the sections but `model`.
        models: the classes that `model` may name.
        variables: the option that each variable of the environment stands for, by the variable's name.
    """
    variables = variables or {}
    for file in config_files(argv):
        try:
            yaml.compose(file.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"not valid YAML: {error.problem or error.context} (in {file}{line})"
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return f"not valid YAML: {' '.join(str(error).split())} (in {file})"
        if not isinstance(yaml.compose(file.read_text(encoding="utf-8")), yaml.MappingNode):
            return f"a config is a mapping of sections such as `data: {{size: 320}}` (in {file})"
    items = _given(argv, variables)
    named = [item.value for item in items if item.path in {("model",), ("model", "class_path")}]
    model = models.get(str(named[-1]).rsplit(".", 1)[-1], next(iter(models.values()))) if named else None
    classes = {**schema, "model": model or next(iter(models.values()))}
    for item in items:
        told = _mistake(item, classes, models)
        if told is not None:
            found = locate(told, argv, variables) if isinstance(item.value, (dict, list)) else told
            return found if found != told else f"{told} ({item.place})"
    return None


def locate(message: str, argv: list[str], variables: Mapping[str, str] | None = None) -> str:
    """The message with the place of what it is about: on the command line, in a config file or in the environment.

    That is the setting it opens with (`data.flip must be …`), or the last word it quotes that stands somewhere; remedies
    at its end are passed over.
    """
    subject = re.match(r"(\w+)\.(\w+)\b", message)
    if subject is not None:
        places = [item.place for item in _given(argv, variables or {}) if item.path[:2] == subject.groups()]
        if places:
            return f"{message} ({places[-1]})"
    told = re.split(r"; did you mean|; known|; it has|Available|; take|; use", message)[0]
    for word in reversed(re.findall(r"'([^']+)'", told)):
        if any(word in _words_of(item) for item in argv):
            return f"{message} (on the command line)"
        for file in reversed(config_files(argv)):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w/-])", line.split("#")[0]):
                    return f"{message} (in {file}, line {number})"
        for name, option in (variables or {}).items():
            if word in _words_of(option):
                return f"{message} (in the environment, {name})"
    return message


def _words_of(option: str) -> list[str]:
    """What an option may quote: itself, its value, and the words between its dots, brackets and slashes."""
    return [option, option.partition("=")[2], *re.split(r"[.=:,{}\[\] '\"/]", option)]


def config_files(argv: list[str]) -> list[Path]:
    """The files of `--config`, in order."""
    found = [argv[i + 1] for i, item in enumerate(argv[:-1]) if item in {"-c", "--config"}]
    found += [item.split("=", 1)[1] for item in argv if item.startswith("--config=")]
    return [Path(file) for file in found if Path(file).is_file()]


def _given(argv: list[str], variables: Mapping[str, str]) -> list[Given]:
    """Every value, in the order in which later ones win."""
    given = [i for name, option in variables.items() for i in _from_options([option], f"in the environment, {name}")]
    return [*given, *_from_files(argv), *_from_options(argv)]


def _from_files(argv: list[str]) -> Iterator[Given]:
    for file in config_files(argv):
        root = yaml.compose(file.read_text(encoding="utf-8"))
        if isinstance(root, yaml.MappingNode):
            yield from _walk(root, (), str(file))


def _walk(node: yaml.MappingNode, path: tuple[str, ...], file: str) -> Iterator[Given]:
    """Every value down to the constructors' arguments; `init_args` adds no step to the path."""
    for key, value in node.value:
        own = path if key.value == "init_args" else (*path, key.value)
        if isinstance(value, yaml.MappingNode) and (not path or key.value == "init_args"):
            if len(own) == 1 and key.value != "init_args":
                yield Given(own, None, f"in {file}, line {key.start_mark.line + 1}")
            yield from _walk(value, own, file)
        else:
            plain = yaml.safe_load(yaml.serialize(value))
            yield Given(own, plain, f"in {file}, line {key.start_mark.line + 1}")


def _from_options(argv: list[str], place: str = "on the command line") -> Iterator[Given]:
    for at, item in enumerate(argv):
        if not item.startswith("--") or item.startswith("--config"):
            continue
        name, has_value, text = item[2:].partition("=")
        if not has_value:
            text = argv[at + 1] if at + 1 < len(argv) else ""
        path = tuple(step for step in name.rstrip("+").split(".") if step != "init_args")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        # `--trainer.logger.name` is an argument of the logger's class, which is not named here.
        yield Given(path[:2], value if len(path) <= 2 else {"init_args": {path[2]: value}}, place)


def _mistake(item: Given, classes: Schema, models: dict[str, type]) -> str | None:
    """What is wrong with one value, without its place."""
    section, *rest = item.path
    if section not in classes and section not in PLAIN_KEYS:
        known = dict.fromkeys([*classes, *PLAIN_KEYS])
        inner = [f"{name}.{section}" for name, kind in classes.items() if section in arguments(kind)]
        return f"unknown key {section!r}{f'; did you mean {inner[-1]!r}?' if inner else nearest(section, known)}"
    if item.path in {("model",), ("model", "class_path")}:
        name = str(item.value).rsplit(".", 1)[-1]
        return None if item.value is None or name in models else f"unknown class {name!r}{nearest(name, models)}"
    if not rest or section not in classes:
        return None
    kind, key = classes[section], rest[0]
    known = arguments(kind)
    if key not in known and key != "class_path":
        return f"unknown key {key!r} of {section}{nearest(key, known)}"
    name, hint = f"{section}.{key}", known.get(key)
    checks = (_wrong_entry, _wrong_class, _wrong_value)
    return next((told for check in checks if (told := check(name, item.value, hint)) is not None), None)


def arguments(kind: type) -> dict[str, Any]:
    """The constructor's arguments with their type hints (Any where there is none)."""
    names = [name for name in inspect.signature(kind).parameters if name not in {"self", "args", "kwargs"}]
    constructor = next((vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)), kind)
    try:
        hints = typing.get_type_hints(constructor)
    except (NameError, TypeError):
        hints = {}
    return {name: hints.get(name, Any) for name in names}


def _wrong_class(name: str, value: Any, hint: Any) -> str | None:
    """A wrong class, or a wrong key of its `init_args`, in a value that describes one object or a list of them."""
    known = {option.__name__: option for base in _classes_in(hint) for option in _subclasses(base)}
    by_name = not any(part is str or typing.get_origin(part) is Literal for part in _alternatives(hint))
    for entry in value if isinstance(value, list) else [value]:
        given = {"class_path": entry} if isinstance(entry, str) and by_name else entry
        if not known or not isinstance(given, dict) or not {"class_path", "init_args"} & set(given):
            continue
        wanted = given.get("class_path")
        kind = known.get(str(wanted).rsplit(".", 1)[-1])
        if kind is None and wanted is not None:
            return f"unknown class {wanted!r}{nearest(str(wanted).rsplit('.', 1)[-1], known)}"
        # Where the class is not named, any argument of any class that fits may be meant.
        allowed = {key for option in ([kind] if kind else known.values()) for key in arguments(option)}
        for key in given.get("init_args") or {}:
            if key not in allowed:
                return f"unknown key {key!r} of {wanted or name}{nearest(key, allowed)}"
    return None


def _wrong_entry(name: str, value: Any, hint: Any) -> str | None:
    """A key of a list's entry that the dataclass it describes has not, e.g. in `data.sources`."""
    for part in _alternatives(hint):
        kind = next(iter(typing.get_args(part)), None)
        if typing.get_origin(part) is not list or not dataclasses.is_dataclass(kind) or not isinstance(value, list):
            continue
        known = [field.name for field in dataclasses.fields(kind)]
        for number, entry in enumerate(value):
            if not isinstance(entry, dict):
                return f"{name}[{number}]: {entry!r} is not a mapping of {', '.join(known)}"
            for key in entry:
                if key not in known:
                    return f"unknown key {key!r} of {name}[{number}]{nearest(str(key), known)}"
    return None


def _classes_in(hint: Any) -> Iterator[type]:
    """The classes that a hint such as `list[Callback] | Callback | None` names."""
    if inspect.isclass(hint) and hint is not Any and typing.get_origin(hint) is None:
        yield hint
    for part in typing.get_args(hint):
        yield from _classes_in(part)


def _subclasses(base: type) -> Iterator[type]:
    if base in {int, float, str, bool, dict, list, type(None), object}:
        return
    yield base
    below: list[type] = type.__subclasses__(base)
    for kind in below:
        yield from _subclasses(kind)


def _wrong_value(name: str, value: Any, hint: Any) -> str | None:
    """A value that its hint's plain types and literals do not admit."""
    parts = list(_alternatives(hint))
    literals = [option for part in parts if typing.get_origin(part) is Literal for option in typing.get_args(part)]
    if value in literals or any(_admits(part, value) for part in parts):
        return None
    if literals and isinstance(value, str):
        return f"{name}: {value!r} is not one of its values{nearest(value, [str(option) for option in literals])}"
    return f"{name}: {value!r} is not {_words(parts, literals)}"


def _alternatives(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return [part for option in typing.get_args(hint) for part in _alternatives(option)]
    return [hint]


def _admits(part: Any, value: Any) -> bool:
    """Whether a plain type admits a plain value; types that are not plain are given the benefit of the doubt."""
    origin = typing.get_origin(part) or part
    if origin in {Literal, None, type(None)}:
        return value is None and origin is not Literal
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return not isinstance(value, bool) and _is_number(value)
    if origin is str:
        return isinstance(value, (str, int, float, bool))
    if origin is tuple and ... not in typing.get_args(part):
        return isinstance(value, list) and len(value) == len(typing.get_args(part))
    if origin in {list, tuple}:
        return isinstance(value, list) and (
            not _holds_mappings(part) or all(isinstance(entry, dict) for entry in value)
        )
    return isinstance(value, dict) if origin is dict else True


def _holds_mappings(part: Any) -> bool:
    return [typing.get_origin(option) or option for option in typing.get_args(part)] == [dict]


def _is_number(value: Any) -> bool:
    """YAML 1.1 reads `1e-3` as text; NaN is none."""
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def _words(parts: list[Any], literals: list[Any]) -> str:
    """A hint in words: `a number or null`."""
    said = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    said |= {list: "a list", tuple: "a list", dict: "a mapping"}
    words = []
    for part in parts:
        origin: Any = typing.get_origin(part) or part
        count = f" of {len(typing.get_args(part))}" if origin is tuple and ... not in typing.get_args(part) else ""
        count = count or (" of mappings" if origin is list and _holds_mappings(part) else "")
        words += [said[origin] + count] if origin in said else []
    return " or ".join(dict.fromkeys([*map(repr, literals), *words])) or "of the right type"
