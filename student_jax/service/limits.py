"""How much a server takes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a request is refused, and when one is given up."""

    body_bytes: int = 512 * 1024
    """of a request; ten pairs of 30 x 30 cells, one cell a line, come to 200 kB"""
    demonstrations: int = 20
    """of a task; published ones have at most 10, and a student reads no more than it was trained
    with"""
    test_inputs: int = 10
    """of a task"""
    waiting: int = 64
    """questions in the queue; then 429"""
    seconds: float = 60.0
    """that a request may take, its body's way here apart; then 504"""
    body_seconds: float = 10.0
    """that a body may take to arrive; then 408"""
    connections: int = 1024
    """open at once; then 503"""
    jobs_waiting: int = 8
    """adaptations in the queue; then 429"""
    jobs_kept: int = 100
    """adaptations that are over and can still be asked for; the oldest make room"""
    job_minutes: float = 60.0
    """for which they are kept"""
    job_seconds: float = 600.0
    """that an adaptation may ask for"""
    job_steps: int = 20_000
    """that an adaptation may ask for"""
    drain_seconds: float = 20.0
    """from SIGTERM or Ctrl-C to the end, whatever is still in hand"""

    def __post_init__(self) -> None:
        """Checks that nothing is ruled out altogether."""
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
