"""What several test files share: dtypes, and how close a result must be."""

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
INTEGERS = [np.dtype(code) for code in "bhilqBHILQ"]


def compute_dtype(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def assert_loss(actual, expected, dtype, note=""):
    """Losses of logits of dtype: relative to the largest, or to 1."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, note
    limit = (1e-12 if dtype == np.float64 else 3e-6) * max(1.0, np.abs(expected).max(initial=0))
    error = np.abs(actual - expected).max(initial=0)
    assert error <= limit, f"loss off by {error:.3g}, allowed {limit:.3g}: {actual} instead of {expected}. {note}"


def assert_grad(actual, expected, note=""):
    """A gradient in actual's dtype: relative to the largest entry; half types to one unit in the last place."""
    assert actual.shape == expected.shape, note
    scale = np.abs(expected).max(initial=0)
    limit = np.full(expected.shape, (1e-12 if actual.dtype == np.float64 else 3e-6) * scale)
    if actual.dtype.itemsize == 2:
        limit += spacing(expected, actual.dtype)
    error = np.abs(actual.astype(np.float64) - expected)
    worst = np.argmax(error - limit) if error.size else 0
    assert (error <= limit).all(), (
        f"gradient off by {error.flat[worst]:.3g}, allowed {limit.flat[worst]:.3g}: {actual.flat[worst]} instead of "
        f"{expected.flat[worst]}. {note}"
    )


def spacing(values, dtype):
    """The distance between neighbouring numbers of a half type, at each value."""
    digits, lowest = (8, -126) if dtype == BFLOAT16 else (11, -14)
    exponent = np.maximum(np.frexp(values)[1] - 1, lowest)
    return np.ldexp(1.0, exponent - (digits - 1))


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def misaligned(array):
    """A copy whose address is not a multiple of the item's size."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned or array.itemsize == 1
    return copy
