"""Rounding of stored draws: noise does not compress, so the bits below the posterior's own noise are cleared.

Values stay float32 and readers need to know nothing; the compressor finds the zeros. Rounding depends on the
parameter and the value only, never on the other draws, so that equal draws are equal bytes whatever the
block.
"""

import numpy as np

from popcosmos_hpc.parameters import ParameterSpace

_MANTISSA_BITS = 23
# Photometric redshifts are the product most often used and the sharpest relative to the range of their prior.
_EXTRA_BITS = {"redshift": 4}


def round_mantissa(values: np.ndarray, keep_bits: int, floor: np.ndarray | float = 0.0) -> np.ndarray:
    """Round to `keep_bits` bits of mantissa, to nearest even, with one canonical NaN.

    Args:
        values: array of floats.
        keep_bits: explicit mantissa bits kept, 0 to 23.
        floor: magnitude below which the step no longer shrinks (broadcasts against `values`); 0 for none.

    Returns:
        float32 array; the error is at most 2^(-keep_bits - 1) max(|value|, floor).

    >>> round_mantissa(np.array([1.2345678, np.inf, 0.01]), 7, floor=1.0).tolist()
    [1.234375, inf, 0.0078125]
    """
    values = np.asarray(values, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        _, exponent = np.frexp(np.maximum(np.abs(values), np.asarray(floor, np.float32)))
        step = np.ldexp(np.float32(1.0), exponent - 1 - keep_bits).astype(np.float32)
        exact = ~np.isfinite(values) | (step == 0) | (keep_bits >= _MANTISSA_BITS)
        rounded = np.rint(values / np.where(exact, 1, step)) * step
    result = np.where(exact, values, rounded).astype(np.float32) + np.float32(0.0)  # no negative zero
    return np.where(np.isnan(result), np.float32(np.nan), result)


def round_theta(theta: np.ndarray, keep_bits: int, space: ParameterSpace | None = None) -> np.ndarray:
    """Round draws parameter by parameter.

    A bounded parameter is a number on a range, not a scale: near zero it needs no finer step than elsewhere.
    Its step is that of its range: at 10 bits one 1,024th to one 512th of it. The redshift keeps four bits
    more.

    Args:
        theta: (..., param) draws.
        keep_bits: mantissa bits kept.
        space: the parameters; without it every parameter is rounded relative to its own magnitude.

    Returns:
        float32 (..., param).
    """
    theta = np.asarray(theta, np.float32)
    if space is None:
        return round_mantissa(theta, keep_bits)
    columns = []
    for index, parameter in enumerate(space.parameters):
        width = parameter.upper - parameter.lower
        bits = min(keep_bits + _EXTRA_BITS.get(parameter.name, 0), _MANTISSA_BITS)
        columns.append(round_mantissa(theta[..., index], bits, width if np.isfinite(width) else 0.0))
    return np.stack(columns, axis=-1)


def round_absolute(values: np.ndarray, step: float) -> np.ndarray:
    """Round to multiples of a power of two, with one canonical NaN; infinities stay.

    Args:
        values: array of floats.
        step: a power of two.
    """
    values = np.asarray(values, np.float32)
    with np.errstate(invalid="ignore"):
        rounded = np.where(np.isfinite(values), np.rint(values / np.float32(step)) * np.float32(step), values)
    rounded = rounded.astype(np.float32) + np.float32(0.0)
    return np.where(np.isnan(rounded), np.float32(np.nan), rounded)
