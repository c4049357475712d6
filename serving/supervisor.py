"""Several service processes on one socket: started one after the other, replaced when they die, stopped together."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType

from pipeline.errors import TrifocalError

log = logging.getLogger("trifocal.supervisor")


class Supervisor:
    """Forks `count` processes that run `work`.

    Args:
        work: gets a function to call once it serves, and a descriptor that ends when the supervisor is gone; returns
            when a SIGTERM has ended it.
        count: processes.
        died: called with the id of a process that ended.
        leave: called when the end begins. What the processes listen on is to be closed here then: connections would
            still be made that nobody answers, until this process is gone as well.
    """

    def __init__(
        self,
        work: Callable[[Callable[[], None], int], None],
        count: int,
        died: Callable[[int], None],
        leave: Callable[[], None],
    ) -> None:
        self._work, self._count, self._died, self._leave = work, count, died, leave
        self._children: set[int] = set()
        self._stopping = False
        self._alive, self._kept = os.pipe()

    def run(self) -> int:
        """Runs until a signal ends it; the exit code: 0, or the first that could not start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        code = 0
        for _ in range(self._count):
            # The first one finds a mistake in the settings for all.
            if self._stopping or not self._start():
                break
        if len(self._children) < self._count and not self._stopping:
            code = 1
            self._stop(signal.SIGTERM, None)
        while self._children:
            pid, status = self._wait()
            failed = os.waitstatus_to_exitcode(status)
            if self._stopping:
                code = code or (1 if failed not in {0, -signal.SIGTERM} else 0)  # the latter: before it began
            else:
                log.warning("service process %d ended with %d; another one starts", pid, failed)
                if not self._start():
                    code = 1
                    self._stop(signal.SIGTERM, None)
        return code

    def _wait(self) -> tuple[int, int]:
        pid, status = os.wait()
        self._children.discard(pid)
        self._died(pid)
        return pid, status

    def _start(self) -> bool:
        """Forks one and waits until it serves; whether it does."""
        ready, tell = os.pipe()
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))  # none between fork and add
        pid = os.fork()
        if pid == 0:
            os.close(ready)
            os.close(self._kept)
            self._be_child(tell, signals)
        os.close(tell)
        self._children.add(pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        while True:
            found, _, _ = select.select([ready], [], [], 0.2)
            if found or self._stopping:
                break
        serves = bool(found) and os.read(ready, 1) == b"1"
        os.close(ready)
        return serves or self._stopping

    def _be_child(self, tell: int, signals: set[int | signal.Signals]) -> None:
        code = 1
        try:
            # Ctrl-C goes to the whole group: only the supervisor acts on it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            self._work(partial(_tell, tell), self._alive)
            code = 0
        except TrifocalError as error:
            sys.stderr.write(error.line())
            code = error.exit_code
        except BaseException:  # noqa: BLE001  # a forked process must end here, whatever happened
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signal module's signature
        self._stopping = True
        self._leave()
        for pid in list(self._children):
            os.kill(pid, signal.SIGTERM)


def _tell(pipe: int) -> None:
    os.write(pipe, b"1")
