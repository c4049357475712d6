"""The `lightning` command: a quick help, and each subcommand's work imported only when it is asked for."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from pipeline.errors import ConfigError, TrifocalError, nearest

COMMANDS = {
    "fit": "train a network on your data, or on the built-in shapes",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "run a checkpoint over the test split",
    "check-data": "find what is wrong with a data set before it costs a run",
    "show-data": "draw a sheet of augmented samples with their labels",
    "export": "write a checkpoint as a bundle (ONNX, TorchScript) that is proven to answer as it does",
    "describe": "tell what a bundle holds, where it came from and how it was checked",
    "evaluate": "measure a bundle on labelled images by the trainer's own metrics",
    "batch-predict": "answer for a folder of any size; a killed run goes on where it stopped",
    "serve": "answer pictures over HTTP: a page for people, an API for programs",
    "inspect": "look inside a network: costs, filters, activations, receptive fields, Grad-CAM",
    "demo": "train, test and picture the three-task network on built-in data",
}
"""Every subcommand with its line of help."""


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<13} {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning COMMAND [--config FILE ...] [--data.root DIR] [options]",
            "",
            "One network, three foci: classification, detection and segmentation on one backbone.",
            "",
            *lines,
            "",
            "`lightning COMMAND --help` tells a command's options. `trifocal` is a second name of this command.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; a user's mistake becomes one line on stderr. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(usage() + "\n")
        return 0
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report its use to its maker
    try:
        return _dispatch(arguments[0], arguments[1:])
    except TrifocalError as error:
        if os.environ.get("TRIFOCAL_DEBUG"):
            raise
        sys.stderr.write(error.line())
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # Lightning has saved, and leaves with 1
            return 130
        raise


def _dispatch(command: str, rest: list[str]) -> int:
    if command not in COMMANDS:
        raise ConfigError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
    if command == "check-data":
        from pipeline.data.check import main as check_data

        return check_data(rest)
    if command == "show-data":
        from pipeline.data.show import main as show_data

        return show_data(rest)
    if command == "serve":
        from serving.command import main as serve

        return serve(rest)
    signal.signal(signal.SIGTERM, _terminated)
    if command == "batch-predict":  # with kept buffers its memory would grow with the folder
        from pipeline.cli_batch import main as batch_predict

        return batch_predict(rest)
    _tune_process()
    if command in {"export", "describe", "evaluate"}:
        import pipeline.export.cli as exporting

        return int(getattr(exporting, f"{command}_command")(rest))
    if command == "inspect":
        from pipeline.inspect.command import main as inspect

        return inspect(rest)
    if command == "demo":
        from pipeline.demo import main as demo

        return demo(rest)
    from pipeline.cli_train import main as train

    return train([command, *rest])


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
    """SIGTERM before the trainer has taken over: leave with its exit code."""
    raise SystemExit(128 + number)


ALLOCATOR = {
    "TRIFOCAL_TUNED": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def _tune_process() -> None:
    """Starts the process anew with glibc told to keep large buffers: it would return and fetch them at every step.

    The allocator reads its environment only at start, hence the one re-execution, guarded by a variable.
    """
    if sys.platform != "linux" or os.environ.get("TRIFOCAL_TUNED") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    if not sys.argv or not os.path.isfile(sys.argv[0]):  # noqa: PTH113  # pathlib is not imported on the quick path
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})  # noqa: S606  # itself, no shell


if __name__ == "__main__":
    sys.exit(main())
