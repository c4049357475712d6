"""Everything that `lightning serve` can be told, with defaults for the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.hardware import cpu_limit

MOST_LONE = 8
"""Threads beyond which one small picture gains nothing from more."""


def on_gpu(spec: str) -> bool:
    """Whether an engine of that name computes on a GPU."""
    return spec.endswith((":cuda", ":tensorrt"))


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings; sizes in bytes and pixels, times in seconds.

    Attributes:
        model: a bundle's folder, or models:/NAME@ALIAS.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        workers: processes that share the port.
        engine: `auto` or an engine's name.
        streams: engine processes of one worker; 0 chooses.
        threads: threads of one engine process; 0 chooses.
        lone: threads for a picture that is alone in the house; 0 chooses, 1 gives it no more than the others.
        decoders: decode processes of one worker; 0 chooses.
        max_batch: most pictures computed together; 0 chooses.
        batch_delay_s: how long a free stream waits for a fuller batch.
        queue_items: pictures in the house at a time.
        queue_bytes: bytes of their requests.
        max_wait_s: longest estimated wait that is accepted.
        deadline_s: until an answer is given up, unless the request says otherwise.
        max_body: bytes of a request.
        max_image: bytes of a picture.
        max_pixels: pixels of a picture.
        max_images: pictures of a request.
        body_timeout_s: in which a request's body must have come.
        header_timeout_s: in which a request's head must have come.
        decode_timeout_s: after which a decoder counts as hung.
        decode_memory: bytes a decoder may take for one picture.
        engine_timeout_s: after which an engine process counts as hung.
        quota: requests per second of one client; 0 for no limit.
        connections: open connections of one worker.
        drain_s: between SIGTERM and the last accepted connection.
        stop_s: in which the accepted requests must be answered afterwards.
        poll_s: between looks at the registry.
        api_keys: accepted keys; empty for none needed.
        cors: origins that may call from a browser page; empty for none.
        log_format: `text` or `json`.
        traces: whether requests are traced by OpenTelemetry.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    engine: str = "auto"
    streams: int = 0
    threads: int = 0
    lone: int = 0
    decoders: int = 0
    max_batch: int = 0
    batch_delay_s: float = 0.0
    queue_items: int = 256
    queue_bytes: int = 256 << 20
    max_wait_s: float = 2.0
    deadline_s: float = 10.0
    max_body: int = 64 << 20
    max_image: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 64
    body_timeout_s: float = 20.0
    header_timeout_s: float = 10.0
    decode_timeout_s: float = 5.0
    decode_memory: int = 1 << 30
    engine_timeout_s: float = 60.0
    quota: float = 0.0
    connections: int = 1000
    drain_s: float = 1.0
    stop_s: float = 30.0
    poll_s: float = 10.0
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    log_format: str = "text"
    traces: bool = False

    @property
    def gpu(self) -> bool:
        """Whether the named engine computes on a GPU."""
        return on_gpu(self.engine)

    def lanes(self) -> int:
        """Engine processes of one worker: a core each on a CPU, one on a GPU."""
        return self.streams or (1 if self.gpu else max(1, cpu_limit() // self.workers))

    def batch(self) -> int:
        """Most pictures computed together; on a CPU batches gain nothing and take the engine's memory for good."""
        return self.max_batch or (16 if self.gpu else 1)

    def depth(self) -> int:
        """Batches that an engine process holds: the next picture waits in it, a batch grows until its process is free."""
        return 2 if self.batch() == 1 else 1

    def engine_threads(self) -> int:
        """Threads of one engine process."""
        return self.threads or max(1, cpu_limit() // (self.workers * self.lanes()))

    def lone_threads(self) -> int:
        """Threads of the process for a picture that is alone; 0 for no such process."""
        # Several workers know nothing of each other's pictures.
        found = self.lone or (1 if self.gpu or self.workers > 1 else min(cpu_limit(), MOST_LONE))
        return found if found > self.engine_threads() else 0

    def decode_lanes(self) -> int:
        """Decode processes of one worker."""
        return self.decoders or max(1, cpu_limit() // self.workers)
