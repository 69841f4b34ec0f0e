"""Serves a student over HTTP: tasks in, answers out, adaptations to watch, a page to play on.

python -m student_jax.serve --checkpoint runs/quickstart/grid
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bridge import config as configs
from bridge.arc import MAX_SIDE, open_questions
from bridge.arc_files import ARC_AGI_1
from bridge.errors import InputError
from student_jax.config import Tier
from student_jax.memory import begin_with_mimalloc
from student_jax.service.library import open_library
from student_jax.service.limits import LOOPBACK, Limits
from student_jax.solve import NANO

if TYPE_CHECKING:
    from student_jax.answerer import Answerer, Shape
    from student_jax.service.host import Host
    from student_jax.service.library import Library
    from student_jax.solver import Solver


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Which student answers where, and how much it takes on."""

    checkpoint: Path = NANO
    """a training run's folder, or a released student's; by default the one of the package"""
    which: Literal["latest", "best"] = "latest"
    """a run's latest checkpoint, or the one that answered the most held-out questions"""
    engine: Literal["jax", "onnx"] = "jax"
    """what computes answers in one pass; onnx for a released student that was exported so, by
    ONNX Runtime, on some CPUs the faster one (docs/performance.md). Learning is JAX's"""
    host: str = "127.0.0.1"
    """to listen at; whoever reaches it may use it: nobody is asked who they are"""
    port: int = 8000
    """to listen at; 0 for any that is free"""
    names: tuple[str, ...] = ()
    """more names that the server goes by, as of a reverse proxy; others are refused on loopback"""
    source: tuple[str, ...] = ARC_AGI_1
    """tasks to pick: arcagi/training, a folder, a Kaggle file"""
    compare: tuple[Path, ...] = ()
    """predictions of other students, to show beside the answers"""
    warm: int = 6
    """shapes of questions that are compiled before the first request, the commonest of the
    tasks; others compile when they come"""
    batch: int | None = None
    """questions of one shape in one call, at most, a power of two; by default 1 on a CPU, which
    gains nothing by more, and else 8"""
    batch_wait_ms: float = 0.0
    """that a question may wait for others of its shape; those that come during a call share the
    next one anyway"""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        if self.batch is not None and (self.batch < 1 or self.batch & (self.batch - 1)):
            raise ValueError(f"batch: expected a power of two, got {self.batch}")
        if not self.batch_wait_ms >= 0 or self.warm < 0:
            raise ValueError("batch_wait_ms, warm: expected at least 0")


def main(config: ServeConfig) -> None:
    """Serve a student over HTTP.

    POST /solve answers a task's JSON, POST /adapt learns it first, / is a page to play on, /docs
    describes it all. The first Ctrl-C or SIGTERM finishes what is in hand.
    """
    try:
        import uvicorn

        from student_jax.service.app import make_app
        from student_jax.service.draining import Server
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve: {error.name} is not installed; pip install 'sage-distill[student,serve]'"
        ) from None
    with listen(config.host, config.port) as at:
        host = make_host(config)
        web = make_app(host, names_of(config))
        settings = uvicorn.Config(
            web,
            http="h11",  # strict, and it bounds headers
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=config.limits.connections,
            timeout_graceful_shutdown=5,
        )
        where = address(*at.getsockname()[:2])
        hello = f"{host.about['student']} answers at {where}; Ctrl-C ends it"
        Server(settings, host, hello).run(sockets=[at])
    if not host.close(1.0):
        print("ended with work in hand: it took too long", file=sys.stderr, flush=True)
        os._exit(1)  # the runtime cannot be torn down under a thread that computes


def listen(host: str, port: int) -> socket.socket:
    """Takes the port, before anything slow is done; nobody is answered yet.

    Raises:
        InputError: if it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        at = socket.socket(family)
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind((host, port))
    except OSError as error:
        raise InputError(
            f"port: expected {host}:{port} to be free, got: {error.strerror}; pass --port"
        ) from None
    if host not in LOOPBACK:
        print(
            f"warning: {host} can be reached from other machines, and nobody is asked who they "
            "are; put a reverse proxy with authentication in front",
            file=sys.stderr,
        )
    return at


def address(host: str, port: int) -> str:
    """Returns a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(config: ServeConfig) -> frozenset[str] | None:
    """Returns the names that the server goes by; None for any, where other machines reach it."""
    if config.host not in LOOPBACK and not config.names:
        return None
    return LOOPBACK | {config.host.lower(), *(name.lower() for name in config.names)}


def make_host(config: ServeConfig) -> Host:
    """Loads the student and the tasks, and compiles for the commonest of them.

    Raises:
        InputError: if there is no such student, or it needs its teacher.
    """
    library = open_library(config.source, config.compare)
    import jax  # it takes a second; bad input should not

    from student_jax.keep import keep_memory_and_programs
    from student_jax.service.batcher import Batcher
    from student_jax.service.host import Host
    from student_jax.service.jobs import Jobs
    from student_jax.service.learning import make_learner
    from student_jax.service.metrics import Metrics
    from student_jax.solver import load_solver

    keep_memory_and_programs()
    solver = load_solver(config.checkpoint, config.which)
    answerer = make_answerer(config, solver)
    shapes = commonest(answerer, library, config.warm)
    for shape in shapes:
        answerer.warm_up(shape)
    batch = config.batch or (1 if jax.default_backend() == "cpu" else 8)
    threading.Thread(target=warm_up, args=(answerer, shapes, batch), daemon=True).start()
    metrics = Metrics()
    return Host(
        about=describe(config, solver),
        trained_on=solver.trained_on,
        batcher=Batcher(
            answerer,
            config.limits.waiting,
            batch,
            config.batch_wait_ms / 1e3,
            metrics.batch_size.observe,
        ),
        jobs=Jobs(make_learner(solver), config.limits),
        library=library,
        limits=config.limits,
        metrics=metrics,
    )


def make_answerer(config: ServeConfig, solver: Solver) -> Answerer:
    """Returns what answers in one pass.

    Raises:
        InputError: if the student needs its teacher, or there is no such export of it.
    """
    if config.engine == "onnx":
        try:
            from student_jax.onnx_engine import OnnxEngine
        except ModuleNotFoundError as error:
            raise InputError(
                f"engine: {error.name} is not installed; pip install 'sage-distill[export]'"
            ) from None
        return OnnxEngine(config.checkpoint)
    from student_jax.engine import Engine

    return Engine(solver)


def describe(config: ServeConfig, solver: Solver) -> dict[str, Any]:
    """Says who answers, see `forms.Health`."""
    teacher = solver.teacher
    return {
        "student": config.checkpoint.resolve().name,
        "parameters": solver.num_parameters,
        "step": solver.step,
        "trained_on_tasks": len(solver.trained_on),
        "teacher": f"{teacher['teacher']}, {teacher['weights']}" if teacher else "none",
        "max_side": MAX_SIDE,
        "max_demonstrations": solver.config.data.max_demonstrations,
        "tiers": ["zero-shot", *get_args(Tier)],
    }


def commonest(answerer: Answerer, library: Library, count: int) -> list[Shape]:
    """Returns the shapes that most questions of the tasks have."""
    tasks = [task for source in library.sources.values() for task in source.values()]
    shapes = Counter(answerer.shape(each) for task in tasks for each in open_questions(task))
    return [shape for shape, _ in shapes.most_common(count)]


def warm_up(answerer: Answerer, shapes: Sequence[Shape], most: int) -> None:
    """Makes ready for calls with several questions of these shapes."""
    for shape in shapes:
        for exponent in range(1, most.bit_length()):
            answerer.warm_up(shape._replace(questions=1 << exponent))


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, ServeConfig)
