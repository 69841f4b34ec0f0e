"""A server that ends well: it takes nothing more on, finishes what is in hand, then goes."""

from __future__ import annotations

import socket
import sys
import time
from types import FrameType

import uvicorn

from student_jax.service.host import Host

LINGER = 3.0  # seconds in which the answers of ended adaptations can still be fetched


class Server(uvicorn.Server):
    """The first SIGTERM or Ctrl-C drains, a second one ends at once."""

    def __init__(self, config: uvicorn.Config, host: Host, hello: str) -> None:
        """Serves `config.app`, which is the host's; says hello once it can be asked."""
        super().__init__(config)
        self._host, self._hello = host, hello
        self._asked = False
        self._busy = self._until = 0.0  # time.monotonic

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        sys.stdout.write(f"{self._hello}\n")
        sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Takes note of a signal; no more is safe in its handler."""
        if self._asked:
            self.should_exit = self.force_exit = True
            return
        self._asked = True
        sys.stderr.write("\nfinishing what is in hand; once more drops it\n")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: drains when asked to, and ends when that is done."""
        if self._asked:
            self._drain(time.monotonic())
        return await super().on_tick(counter)

    def _drain(self, now: float) -> None:
        host = self._host
        if not host.draining:
            host.drain()
            self._until = now + host.limits.drain_seconds
        if not (host.batcher.is_idle and host.jobs.is_idle):
            self._busy = now
        done = now > self._busy and (host.jobs.are_collected or now > self._busy + LINGER)
        if done or now > self._until:
            self.should_exit = True
