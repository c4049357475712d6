"""Settings from the environment: TRIFOCAL_FIT__MODEL__LR=0.1 stands for `fit --model.lr=0.1`, given before any config."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "TRIFOCAL"


def environment_options(command: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The option that each variable of a command stands for, by the variable's name; a config file comes first.

    The argument parser itself takes variables of whole sections and classes only, and passes over misspelt ones.
    """
    start = f"{PREFIX}_{command.upper()}__"
    found = sorted((not name.endswith("__CONFIG"), name) for name in environ if name.startswith(start))
    return {
        name: f"--{name.removeprefix(start).lower().replace('__', '.')}={environ[name]}"
        for _, name in found
        if name != start
    }
