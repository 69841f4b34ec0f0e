"""Asks a server, `python -m student_jax.serve`, from Python or the terminal; needs no jax.

    client = Client("http://127.0.0.1:8000")
    solved = client.solve(task, views=8)
    for progress in (learning := client.adapt(task)):
        print(progress.step, progress.loss, progress.fit)
    learning.attempts

python -m student_jax.client my_task.json --url http://127.0.0.1:8000
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit

import numpy as np
import tyro
from rich.console import Console
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import Task, parse_grid
from bridge.arc_files import find_task, without_answers
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.stop import Stop

URL = "http://127.0.0.1:8000"
POLL_SECONDS = 0.5


class RefusedError(InputError):
    """The server said no, in one line."""

    def __init__(self, line: str, status: int, retry_after: float | None) -> None:
        """Of a response; `retry_after` seconds a full queue may have room."""
        super().__init__(line)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Solved:
    """Answers in one pass."""

    attempts: tuple[Attempts, ...]  # one a test input
    milliseconds: float  # from the parsed question to the grid
    queued_milliseconds: float  # before that
    about: dict[str, Any]  # the whole response


@dataclass(frozen=True)
class Progress:
    """How far an adaptation has come."""

    state: Literal["queued", "learning", "done", "cancelled", "failed"]
    step: int
    progress: float  # share of the budget that is spent
    loss: float | None  # nats a cell
    fit: float  # share of right cells
    attempts: tuple[Attempts, ...]  # one a test input, once there are some
    error: str | None
    about: dict[str, Any]  # the whole response

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "cancelled", "failed")


class Client:
    """Speaks to one server; it holds no connection, so threads may share it."""

    def __init__(self, url: str = URL, seconds: float = 90.0) -> None:
        """Asks nothing yet.

        Args:
            url: of the server; https where a reverse proxy brings it.
            seconds: to wait for a response, at most.

        Raises:
            InputError: if it is no URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"url: expected http://host:port, got '{url}'")
        self.url, self.seconds = url.rstrip("/"), seconds
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._at, self._prefix = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")

    def solve(self, task: Task, views: int = 1, *, certainty: bool = False) -> Solved:
        """Answers a task; its test outputs are not sent.

        Raises:
            InputError: if nobody answers at the URL; `RefusedError` if the server says no.
        """
        query = {"views": views, "certainty": str(certainty).lower()}
        said = self.ask("POST", "/solve", query, without_answers(task))
        times = said["milliseconds"], said["queued_milliseconds"]
        return Solved(attempts_of(said["answers"]), *times, said)

    def adapt(
        self,
        task: Task,
        tier: str = "weights",
        seconds: float = 60.0,
        steps: int = 2000,
        views: int = 1,
    ) -> Adaptation:
        """Has a task learnt first; its test outputs are not sent.

        Raises:
            InputError: as `solve`.
        """
        query = {"tier": tier, "seconds": seconds, "steps": steps, "views": views}
        said = self.ask("POST", "/adapt", query, without_answers(task))
        return Adaptation(self, said["job"])

    def health(self) -> dict[str, Any]:
        """Says who answers; a server that ends says so, too.

        Raises:
            InputError: as `solve`.
        """
        status, said, _ = self._exchange("GET", "/health", None)
        if status not in (200, 503) or "student" not in said:
            raise InputError(f"url: expected a student's server at {self.url}, got {status}")
        return said

    def ask(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> dict[str, Any]:
        """Makes one request and returns the JSON of the response.

        Raises:
            InputError: as `solve`.
        """
        where = f"{path}?{urlencode(query)}" if query else path
        status, said, retry_after = self._exchange(method, where, body)
        if status >= 400:
            line = f"{self.url}: {said.get('detail', 'no')} ({status})"
            raise RefusedError(line, status, retry_after)
        return said

    def _exchange(
        self, method: str, where: str, body: Any
    ) -> tuple[int, dict[str, Any], float | None]:
        """Returns status, JSON, and after how many seconds to come again."""
        connection = self._connection(self._at, timeout=self.seconds)
        text = None if body is None else json.dumps(body, separators=(",", ":"))
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            connection.request(method, self._prefix + where, text, headers)
            response = connection.getresponse()
            said = json.loads(response.read() or b"{}")
        except (OSError, HTTPException) as error:
            raise InputError(
                f"url: nobody answers at {self.url}: {error or type(error).__name__}; "
                "start a server with python -m student_jax.serve"
            ) from None
        except ValueError:
            raise InputError(
                f"url: expected a student's server at {self.url}, got no JSON"
            ) from None
        finally:
            connection.close()
        again = response.headers.get("retry-after", "")
        return response.status, said, float(again) if again.isdecimal() else None


class Adaptation:
    """A task that a server learns; iterating watches it until it is over."""

    def __init__(self, client: Client, job: str) -> None:
        """Of a job that the server has taken on."""
        self.job, self._client = job, client
        self._last: Progress | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Yields how far it has come, twice a second.

        Raises:
            InputError: if it failed, or as `Client.solve`.
        """
        while True:
            progress = self.look()
            yield progress
            if progress.is_over:
                return
            time.sleep(POLL_SECONDS)

    @property
    def attempts(self) -> tuple[Attempts, ...]:
        """Waits until it is over and returns the attempts.

        Raises:
            InputError: if it failed, or as `Client.solve`.
        """
        last = self._last
        if last is None or not last.is_over:
            *_, last = self
        return last.attempts

    def look(self) -> Progress:
        """Asks how far it has come.

        Raises:
            InputError: if it failed, or as `Client.solve`.
        """
        self._last = progress = progress_of(self._client.ask("GET", f"/adapt/{self.job}"))
        if progress.state == "failed":
            raise InputError(f"adapt: {progress.error}")
        return progress

    def cancel(self) -> None:
        """Ends the learning; what is learnt by then answers.

        Raises:
            InputError: as `Client.solve`.
        """
        self._client.ask("DELETE", f"/adapt/{self.job}")


def progress_of(said: dict[str, Any]) -> Progress:
    """Reads a response about a job."""
    kept = {name: said[name] for name in ("state", "step", "progress", "loss", "fit", "error")}
    return Progress(**kept, attempts=attempts_of(said["answers"]), about=said)


def attempts_of(answers: list[dict[str, Any]]) -> tuple[Attempts, ...]:
    """Reads the answers of a response."""
    return tuple(
        Attempts(
            *(parse_grid(grid, "answer") for grid in answer["attempts"]),
            confidence=answer["confidence"],
            log_prob=answer["log_prob"],
            certainty=np.array(answer["certainty"], np.float32) if "certainty" in answer else None,
        )
        for answer in answers
    )


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """What to ask which server."""

    task: Annotated[str, tyro.conf.Positional]
    """an ARC-AGI-1 task id or a task's JSON file"""
    url: str = URL
    """of the server"""
    views: int = 1
    """of each question, to vote on, at most 8"""
    adapt: str | None = None
    """learn the demonstrations first: tokens, weights or joint"""
    seconds: float = 60.0
    """adapt: at most; what is learnt by then answers"""
    steps: int = 2000
    """adapt: at most"""


def main(config: ClientConfig) -> None:
    """Ask a server to answer an ARC task.

    The attempts are printed in color, beside the expected grid where that is known; it is not sent.
    Ctrl-C ends the learning, and what is learnt by then answers.
    """
    from student_jax.terminal import print_attempts

    task, client = find_task(config.task), Client(config.url)
    student = client.health()["student"]
    if config.adapt is None:
        solved = client.solve(task, config.views)
        attempts, note = solved.attempts, f"{solved.milliseconds:.1f} ms"
    else:
        attempts, note = learn(client, task, config), f"learnt: {config.adapt}"
    print_attempts(Console(), task, attempts, f"{student}, {note}")


def learn(client: Client, task: Task, config: ClientConfig) -> tuple[Attempts, ...]:
    """Has a task learnt, and shows how far it has come."""
    asked = config.adapt or "weights", config.seconds, config.steps, config.views
    learning = client.adapt(task, *asked)
    with Stop() as stop, tqdm(total=100, unit="%", leave=False) as bar:
        for seen in learning:
            bar.n = round(100 * seen.progress)
            loss = "" if seen.loss is None else f", {seen.loss:.3f} nats a cell"
            bar.set_postfix_str(f"{seen.state}, fitted {seen.fit:.1%} of cells{loss}")
            if stop.requested and not seen.is_over:
                learning.cancel()
    if not learning.attempts:
        raise InputError(f"adapt: job {learning.job} ended before it began; no answers")
    return learning.attempts


if __name__ == "__main__":
    configs.command(main, ClientConfig)
