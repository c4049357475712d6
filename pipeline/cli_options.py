"""Options as people give them: variables of the environment, which stand before any config, and options of single heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

PREFIX = "TRIFOCAL"

Heads = dict[str, dict[str, Any] | None]
"""Options by head."""

Edit = tuple[str, str | None, Any]
"""A head, one of its options (None: all of them), and the value."""


def environment_options(command: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The option that each variable of a command stands for, by the variable's name; a config file comes first.

    TRIFOCAL_FIT__MODEL__LR=0.1 stands for `fit --model.lr=0.1`.

    The argument parser itself takes variables of whole sections and classes only, and passes over misspelt ones.
    """
    start = f"{PREFIX}_{command.upper()}__"
    found = sorted((not name.endswith("__CONFIG"), name) for name in environ if name.startswith(start))
    return {
        name: f"--{name.removeprefix(start).lower().replace('__', '.')}={environ[name]}"
        for _, name in found
        if name != start
    }


def head_options(argv: list[str]) -> list[str]:
    """Turns `--model.heads.objects.max_boxes=50` into one value for the head, which the parser understands."""
    rest, edits = _split(argv)
    heads: Heads = {}
    _apply(edits, heads)
    for name, options in heads.items():
        rest += [f"--model.init_args.heads.{name}", _flow(options)]
    return rest


def join_options(argv: list[str], variables: Mapping[str, str], configs: list[Path]) -> list[str]:
    """The words for the parser: variables first, and the options of heads from every place joined into one value.

    The parser itself would let the heads of a later place replace all that an earlier one says of them.

    Args:
        argv: the command and its arguments.
        variables: as `environment_options` gives them.
        configs: the config files, in order.
    """
    before, edits = _split(list(variables.values()))
    rest, later = _split(argv[1:])
    words = [*argv[:1], *before, *rest]
    found = [_heads_in(file) for file in configs]
    whole = any(re.match(r"--model\.(init_args\.)?heads(=|$)", word) for word in rest)  # says all there is to say
    if not edits and not later and (whole or sum(map(bool, found)) < 2):
        return words
    heads: Heads = {}
    if not whole:
        _apply(edits, heads)
        for given in found:
            for name, options in given.items():
                known, own = heads.get(name) or {}, options or {}
                heads[name] = own if own.get("kind", known.get("kind")) != known.get("kind") else {**known, **own}
    else:
        for at, word in enumerate(rest):
            if re.match(r"--model\.(init_args\.)?heads(=|$)", word):
                heads = _mapping(word.partition("=")[2] or rest[min(at + 1, len(rest) - 1)], word)
    _apply(later, heads)
    return [*words, "--model.init_args.heads", _flow(heads)]


def _split(words: list[str]) -> tuple[list[str], list[Edit]]:
    """Options of heads apart from the others."""
    rest: list[str] = []
    edits: list[Edit] = []
    items = iter(words)
    for item in items:
        match = re.fullmatch(r"--model\.(?:init_args\.)?heads\.([^.=]+)(?:\.(\w+))?(?:=(.*))?", item, re.DOTALL)
        if match is None:
            rest.append(item)
            continue
        name, option, value = match.groups()
        value = next(items, "") if value is None else value
        edits.append((name, option, _mapping(value, item) if option is None else _value(value, item)))
    return rest, edits


def _apply(edits: list[Edit], heads: Heads) -> None:
    for name, option, value in edits:
        heads[name] = value if option is None else {**(heads.get(name) or {}), option: value}


def _heads_in(config: Path) -> Heads:
    """`model.init_args.heads` of a config file; empty where there is none, or the file is broken, which is told later."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        found = content["model"]["init_args"]["heads"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}
    right = isinstance(found, dict) and all(isinstance(options, dict | None) for options in found.values())
    return found if right else {}


def _value(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option}: {text!r} is not valid YAML") from error


def _mapping(text: str, option: str) -> Any:
    value = _value(text, option)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{option}: {text!r} is not a mapping of options")
    return value or {}


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False).strip()
