"""A coverage-guided fuzzer on one target: `python -m tests.fuzz decoder --seconds 60`; needs `pip install -e '.[fuzz]'`.

What breaks the target is written to the working directory as `crash-*`; `--input FILE` runs it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzzes until the time is up (exit code 0) or something breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=("decoder", "v2", "form"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder that keeps what reached new code (default: a new one)")
    parser.add_argument("--input", type=Path, help="run one file and end")
    given = parser.parse_args()
    import atheris

    with atheris.instrument_imports(
        include=["PIL", "pipeline.imaging", "serving", "python_multipart"], enable_loader_override=False
    ):
        from tests.fuzz.targets import TARGETS
    target, seeds = TARGETS[given.target]
    if given.input:
        target(given.input.read_bytes())
        return
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix="trifocal-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number:02d}").write_bytes(seed)
    flags = [
        f"-max_total_time={given.seconds}",
        "-timeout=10",
        "-rss_limit_mb=3000",
        "-max_len=16384",
        "-close_fd_mask=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
