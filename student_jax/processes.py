"""Several processes, one run: how they find each other, and what they must agree on.

On a cluster every process runs the same command; see docs/training.md.
"""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from bridge.errors import InputError


def join() -> bool:
    """Joins the other processes of this run, if the environment names any; before JAX is used.

    `srun` and `mpirun` are recognised, by JAX itself. Elsewhere, as on Kubernetes, set
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    If the others do not come within 300 s, JAX ends the process itself, with exit code 134.

    Returns:
        Whether there are others.

    Raises:
        InputError: if they are set in part.
    """
    env = os.environ
    launched = max(int(env.get(k, "1")) for k in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if "JAX_COORDINATOR_ADDRESS" not in env and launched == 1:
        return False
    try:
        count, own = (
            int(env[key]) if key in env else None for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        )
        # Its notifier would swallow SIGTERM until training installs a handler of its own.
        jax.config.update("jax_enable_preemption_service", False)
        # One that fails waits for the others that long before it ends, and they with it.
        jax.distributed.initialize(num_processes=count, process_id=own, shutdown_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        fault = " ".join(str(error).split())[:200]
        raise InputError(
            "processes: expected JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID to "
            f"name this run's processes, or srun or mpirun to start them: {fault}"
        ) from None
    return True


def is_first() -> bool:
    """Whether this process is the one that writes what only one may write."""
    return jax.process_index() == 0


def own_rows(batch_size: int) -> slice:
    """Returns which rows of a batch this process' devices take; the first process has the first."""
    each = batch_size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(flag).any())


def first_says(values: dict[str, float]) -> dict[str, float]:
    """Returns the first process' numbers in all of them."""
    if jax.process_count() == 1:
        return values
    sent = np.array(list(values.values()), np.float64).view(np.uint8)  # JAX would round to f32
    said = np.asarray(multihost_utils.broadcast_one_to_all(sent)).view(np.float64)
    return dict(zip(values, said.tolist(), strict=True))


def wait_for_all(what: str) -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
