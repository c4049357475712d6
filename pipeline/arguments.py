"""The argument parser of the small commands: a mistake is one line with the nearest right spelling."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pipeline.errors import ConfigError, nearest


class Arguments(argparse.ArgumentParser):
    """argparse without abbreviations, raising ConfigError instead of printing its usage."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The values; an unknown option is told before a missing one, which is often the same slip."""
        known = {option for action in self._actions for option in action.option_strings}
        for word in words:
            option = word.split("=")[0]
            if option.startswith("--") and option not in known:
                raise ConfigError(f"{self.prog}: unknown option {option}{nearest(option, known - {'-h'})}")
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{self.prog}: {message}; `{self.prog} --help` tells the options")
