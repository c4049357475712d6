"""`python -m serving.fetch version NAME ALIAS | fetch NAME VERSION FOLDER`: what needs MLflow, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from pipeline.errors import BundleError, TrifocalError
from pipeline.registered import ModelRef, fetch_bundle, version_number


def main(arguments: list[str]) -> int:
    """Runs one of the two; one line on stderr where it fails."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        if importlib.util.find_spec("mlflow") is None:
            raise BundleError("registered models need MLflow: pip install mlflow-skinny")
        if arguments[0] == "version":
            sys.stdout.write(version_number(ModelRef(arguments[1], arguments[2])))
        else:
            fetch_bundle(arguments[1], arguments[2], Path(arguments[3]))
    except TrifocalError as error:
        sys.stderr.write(error.line())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
