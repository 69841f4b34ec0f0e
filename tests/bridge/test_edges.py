import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from bridge import from_torch, to_jax

# Every bf16 there is: NaN payloads, infinities, signed zeros, subnormals.
BITS = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def every_bf16():
    # Cloned, so that torch allocates it: 64-byte aligned, which JAX needs in order not to copy.
    return torch.from_numpy(BITS.copy()).clone().view(torch.bfloat16)


def test_bf16_keeps_its_bits_through_numpy_to_jax_and_back():
    array = from_torch.to_numpy(every_bf16())
    assert array.dtype == ml_dtypes.bfloat16
    placed = to_jax.to_jax(array)
    assert placed.dtype == jax.numpy.bfloat16
    back = to_jax.to_numpy(placed)
    np.testing.assert_array_equal(back.view(np.uint16), BITS)
    tensor = from_torch.from_numpy(back.copy())
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.view(torch.uint16).numpy(), BITS)


def test_to_numpy_does_not_copy_a_contiguous_cpu_tensor():
    tensor = every_bf16()
    assert from_torch.to_numpy(tensor).ctypes.data == tensor.data_ptr()


def test_to_numpy_takes_views_gradients_and_other_dtypes():
    tensor = every_bf16()[::2, 1:].requires_grad_()
    np.testing.assert_array_equal(from_torch.to_numpy(tensor).view(np.uint16), BITS[::2, 1:])
    assert from_torch.to_numpy(torch.ones(2)).dtype == np.float32


def test_dlpack_makes_no_copy_and_keeps_bits():
    tensor = every_bf16()
    shared = to_jax.share_from_torch(tensor)
    assert shared.unsafe_buffer_pointer() == tensor.data_ptr()
    np.testing.assert_array_equal(np.asarray(shared).view(np.uint16), BITS)
    back = from_torch.share_from_jax(shared)
    assert back.data_ptr() == tensor.data_ptr()


def test_own_is_safe_from_later_writes():
    tensor = torch.ones(64)
    shared = to_jax.share_from_torch(tensor)
    owned = to_jax.own(shared)
    assert owned.unsafe_buffer_pointer() != tensor.data_ptr()
    tensor.zero_()
    np.testing.assert_array_equal(np.asarray(owned), np.ones(64))


def test_from_numpy_refuses_what_torch_would_write_through():
    array = np.ones(4, ml_dtypes.bfloat16)
    array.setflags(write=False)
    with pytest.raises(ValueError, match=r"pass array.copy\(\)"):
        from_torch.from_numpy(array)
