"""What a run was made from: settings as flat names, the code's commit, the packages."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "albumentations",
    "segmentation-models-pytorch",
    "timm",
    "mlflow",
    "numpy",
)


def clean(name: str) -> str:
    """A metric name that MLflow accepts: letters, digits, and _ - . space : /."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c: text`; lists stay one value."""
    out: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{name}.")
        else:
            out[clean(name)] = str(value)
    return out


def code_version() -> dict[str, str]:
    """Commit of the repository that tracks this code (not the working directory's), and whether it had changes."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603  # fixed arguments
                ["git", "-C", str(here.parent), *words],  # noqa: S607  # the user's own git
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", here.name) is None:
        return {}
    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"code.commit": commit, "code.dirty": str(bool(git("status", "--porcelain")))}


def environment() -> dict[str, str]:
    """Python, platform and package versions."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "platform": platform.platform(), **versions}
