"""The torch edge: bfloat16 between torch tensors, numpy arrays and DLPack, bit for bit.

torch has no numpy bfloat16 and numpy knows the type only through `ml_dtypes`, so bits are carried
as uint16 and looked at anew on arrival.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

_TO_BITS = {torch.bfloat16: (torch.uint16, np.dtype(ml_dtypes.bfloat16))}


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Returns the tensor's values as numpy, bfloat16 as `ml_dtypes.bfloat16`.

    NaN payloads, infinities, signed zeros and subnormals keep their bits. On the CPU a contiguous
    tensor is not copied: both share memory.
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _TO_BITS:
        bits, dtype = _TO_BITS[tensor.dtype]
        return tensor.view(bits).numpy().view(dtype)
    return tensor.numpy()


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """Returns a tensor over the array's memory; the reverse of `to_numpy`, without a copy.

    Raises:
        ValueError: if the array is read-only or not contiguous, since torch would write through it.
    """
    if not array.flags.writeable or not array.flags.c_contiguous:
        raise ValueError("from_numpy: expected a writeable, contiguous array; pass array.copy()")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def share_from_jax(array: Any) -> torch.Tensor:
    """Returns a tensor over a JAX array's buffer through DLPack: no copy, same device.

    Do not write to it: JAX takes its arrays to be immutable.
    """
    return torch.from_dlpack(array)
