"""Tasks that learn in eager PyTorch: what JAX's adaptation is held against.

Two ways: one task after the other, each on all cores, and apart, a process of one thread for each
core with its share of the tasks, as JAX's devices have theirs. AdamW is PyTorch's fused one, which
takes all arrays in one call; the plain one goes through them one by one on a CPU.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bridge.canvas import NUM_CLASSES
from bridge.torch_grid_student import GridMirror
from student_jax.config import AdaptConfig
from student_jax.learner import TOKENS_RATE
from student_jax.lesson import Shown

Drawn = Sequence[Sequence[Shown]]  # of each step, of each task
Said = list[list[float]]  # likewise, the losses


class TorchTask:
    """One task that learns."""

    def __init__(
        self,
        model: Mapping[str, Any],
        feature_width: int,
        state: Mapping[str, np.ndarray],
        config: AdaptConfig,
        plain: Shown,
    ) -> None:
        """Gives the mirror the student's weights, and the task its tokens.

        Args:
            model: a `ModelConfig` as a dict.
            feature_width: of the teacher.
            state: the weights, by the mirror's names.
            config: how it learns.
            plain: its demonstrations.
        """
        self.mirror = GridMirror(model, feature_width)
        self.mirror.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
        with torch.no_grad():
            palette = torch.tensor(np.asarray(plain.palette))
            drawn = torch.tensor(np.asarray(plain.demonstrations))
            tokens, self.colors = self.mirror.encode_task(drawn, palette)
        self.tokens = torch.nn.Parameter(tokens)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.mirror.parameters())},
                {"params": [self.tokens], "lr": TOKENS_RATE * config.lr},
            ],
            lr=config.lr,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, shown: Shown) -> float:
        """Makes one update and returns the loss before it."""
        demonstrations = torch.tensor(np.asarray(shown.demonstrations))
        mask = torch.tensor(np.asarray(shown.mask))
        copies, pairs, side = *mask.shape, demonstrations.shape[-1]
        view = torch.tensor(np.asarray(shown.view)).repeat_interleave(pairs)
        logits = self.mirror.answer(
            self.tokens[view],
            self.colors[view],
            mask.repeat_interleave(pairs, 0),
            torch.tensor(np.asarray(shown.palette)).repeat_interleave(pairs, 0),
            demonstrations[:, :, 0].reshape(-1, side, side),
        )
        answers = demonstrations[:, :, 1].reshape(-1).long()
        nats = functional.cross_entropy(logits.reshape(-1, NUM_CLASSES), answers, reduction="none")
        loss = (nats.reshape(copies, pairs, -1).mean(-1) * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.mirror.parameters(), self.tokens], 1.0)
        self.optimizer.step()
        return loss.item()


Begin = Callable[[Shown], TorchTask]


def learn(tasks: Sequence[TorchTask], drawn: Drawn) -> Said:
    """Takes each step of every task in turn."""
    return [[task.step(one) for task, one in zip(tasks, each, strict=True)] for each in drawn]


class Apart:
    """Tasks that learn in processes of one thread each."""

    def __init__(self, begin: Begin, shares: Sequence[Sequence[Shown]]) -> None:
        """Starts a process for each share of the tasks, and waits until all have begun."""
        spawn = multiprocessing.get_context("spawn")  # a fork would share JAX's threads
        pairs = [spawn.Pipe() for _ in shares]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            spawn.Process(target=_work, args=(theirs, begin, share), daemon=True)
            for (_, theirs), share in zip(pairs, shares, strict=True)
        ]
        for process, (_, theirs) in zip(self.processes, pairs, strict=True):
            process.start()
            theirs.close()  # the process has its own: ours would hide that it ended
        self._hear()

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()

    def show(self, shares: Sequence[Drawn]) -> None:
        """Hands every process its tasks' drawings, and waits until all have them."""
        for pipe, share in zip(self.pipes, shares, strict=True):
            pipe.send(share)
        self._hear()

    def learn(self) -> list[Said]:
        """Takes the steps that were shown, and waits for the last process."""
        for pipe in self.pipes:
            pipe.send("go")
        return self._hear()

    def _hear(self) -> list[Any]:
        """Waits for a word from every process.

        Raises:
            EOFError: if one has ended; it has said why.
        """
        return [pipe.recv() for pipe in self.pipes]


def _work(pipe: Connection, begin: Begin, plain: Sequence[Shown]) -> None:
    """What a process does: takes drawings and learns from them when told, until the pipe ends."""
    torch.set_num_threads(1)
    tasks = [begin(each) for each in plain]
    pipe.send("begun")
    while True:
        try:
            drawn: Drawn = pipe.recv()
        except EOFError:
            return
        pipe.send("shown")
        pipe.recv()
        pipe.send(learn(tasks, drawn))
