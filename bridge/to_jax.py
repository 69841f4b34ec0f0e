"""The JAX edge: numpy and DLPack to `jax.Array`, bit for bit.

The only file of the bridge that imports jax.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt


def to_jax(array: npt.NDArray[Any], sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    """Places a numpy array (bfloat16 as `ml_dtypes.bfloat16`) on a device, or over a mesh.

    On the CPU a 64-byte aligned array may be aliased rather than copied: do not write to it after.
    """
    return jax.device_put(array, sharding)


def to_numpy(array: jax.Array) -> npt.NDArray[Any]:
    """Returns a JAX array's values as numpy. Blocks until they are ready."""
    return np.asarray(array)


def share_from_torch(tensor: Any) -> jax.Array:
    """Returns a JAX array over a torch tensor's buffer through DLPack: no copy, same device.

    That holds for what torch allocates; JAX copies a buffer that is not 64-byte aligned.
    Later writes to the tensor show through; `own` gives an array that is safe from them.
    Gradients do not cross: the tensor is detached.
    """
    return jnp.from_dlpack(tensor.detach())


def own(array: jax.Array) -> jax.Array:
    """Returns a copy that shares no memory; `from_dlpack(copy=True)` does not (jax 0.10-0.12)."""
    return jnp.array(array, copy=True)
