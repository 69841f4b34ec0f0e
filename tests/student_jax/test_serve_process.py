"""The command as people run it: in a process of its own, over a real socket."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from bridge.arc import Task
from bridge.arc_files import load_tasks
from student_jax import serve
from student_jax.client import Client, RefusedError
from tests.conftest import ROOT, virtual_devices
from tests.student_jax.runs import end_of

SECONDS = 120


@pytest.fixture
def start():
    """Starts servers, and ends what is left of them."""
    servers = []

    def start(*arguments):
        command = [sys.executable, "-m", "student_jax.serve", "--port", "0", *arguments]
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": virtual_devices(1)},  # as outside of tests
        )
        servers.append(server)
        line = server.stdout.readline()
        assert " answers at http://127.0.0.1:" in line, server.communicate(timeout=SECONDS)[1]
        return server, Client(line.split()[3].rstrip(";"), SECONDS)

    yield start
    for server in servers:
        if server.poll() is None:
            server.kill()
        server.communicate()


def test_sigterm_finishes_what_is_in_hand(start, task_folder):
    server, client = start("--source", str(task_folder), "--warm", "0")
    task = load_tasks(str(task_folder))["1a"]
    solved = client.solve(task, certainty=True)
    assert solved.attempts[0].certainty.shape == solved.attempts[0].first.shape
    assert solved.milliseconds > 0
    with pytest.raises(RefusedError, match=r"views: .*\(422\)") as refused:
        client.solve(task, views=9)
    assert refused.value.status == 422

    learning = client.adapt(task, tier="tokens", seconds=60, steps=20_000)
    queued = client.adapt(task, tier="tokens")
    steps = []
    for seen in learning:
        steps.append(seen.step)
        if seen.step >= 1:
            break
    found = []
    several = Task("1a", task.demonstrations, task.test_inputs * 4)  # one by one, the rest waits
    asking = threading.Thread(target=lambda: found.append(client.solve(several, views=8)))
    asking.start()
    until = time.monotonic() + SECONDS
    while client.health()["waiting"] == 0:
        assert time.monotonic() < until
        assert not found
    server.send_signal(signal.SIGTERM)
    while client.health()["status"] == "ok":
        assert time.monotonic() < until
    with pytest.raises(RefusedError, match=r"\(503\)"):
        client.solve(task)
    assert learning.attempts[0].first.shape == (3, 3)  # what was learnt by then
    assert learning.look().state == "cancelled"
    assert (queued.look().state, queued.look().attempts) == ("cancelled", ())
    asking.join(SECONDS)
    assert len(found[0].attempts) == 4  # what was in hand is answered
    out, err = server.communicate(timeout=SECONDS)
    assert server.returncode == 0, err
    assert out == ""
    assert err == "\nfinishing what is in hand; once more drops it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "none"), "expected a training run with checkpoints, got none"),
        (("--engine", "onnx"), "nano: expected an export of a grid student with ONNX; run"),
        (("--source", "none"), "'none', which does not exist"),
        (("--compare", "none.json"), "none.json: cannot be read"),
        (("--limits.waiting", "0"), "waiting: expected more than 0"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, monkeypatch, capsys):
    assert end_of(monkeypatch, serve.main, serve.ServeConfig, "--port", "0", *arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert message in told


def test_a_port_in_use_is_one_clear_line_before_anything_slow():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "student_jax.serve", "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: port: expected 127.0.0.1:{port} to be free, got: Address already in use; "
        "pass --port\n"
    )


def test_the_client_needs_no_jax():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'torch', 'fastapi')));"
        "import student_jax.client"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
