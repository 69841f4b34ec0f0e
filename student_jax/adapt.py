"""Learns each task's demonstrations, then answers it, with all settings at hand.

python -m student_jax.adapt 007bbfb7 --checkpoint runs/nano --views 8 --learning.steps 300
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge import config as configs
from student_jax.config import AdaptConfig
from student_jax.memory import begin_with_mimalloc
from student_jax.solve import Asked, solve


@dataclass(frozen=True, kw_only=True)
class AdaptCommand(Asked):
    """What to learn, and how."""

    learning: AdaptConfig = field(default_factory=AdaptConfig)


def main(config: AdaptCommand) -> None:
    """Learn each task's demonstrations, then answer it: the same as solve --adapt.

    Every task starts from the checkpoint's weights and, but for the tier joint, learns alone;
    nothing is kept of it but its answers. Ctrl-C ends the learning: what is learnt by then answers,
    and tasks that have not begun are left out.
    """
    solve(config, config.learning)


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, AdaptCommand)
