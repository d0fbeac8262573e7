"""Absorption by the intergalactic medium (Madau 1995), as FSPS applies it."""

import numpy as np

_LYMAN_SERIES = np.array(
    [1215.67, 1025.72, 972.537, 949.743, 937.803, 930.748, 926.226, 923.150, 920.963, 919.352,
     918.129, 917.181, 916.429, 915.824, 915.329, 914.919, 914.576]
)  # fmt: skip
_COEFFICIENTS = np.array(
    [0.0036, 0.0017, 0.0011846, 0.0009410, 0.0007960, 0.0006967, 0.0006236, 0.0005665, 0.0005200,
     0.0004817, 0.0004487, 0.0004200, 0.0003947, 0.000372, 0.000352, 0.0003334, 0.00031644]
)  # fmt: skip
_LIMIT = 911.75


def madau_transmission(wave: np.ndarray, redshift: float) -> np.ndarray:
    """Mean transmission (wave,) at rest wavelengths [Angstrom] of a source at `redshift`.

    Line blanketing (Madau 1995, eqs. 12 and 15), metals, and the approximation of the continuum
    depth in footnote 3 of the paper.
    """
    observed = wave * (1 + redshift)
    depth = np.zeros_like(wave)
    for line, coefficient in zip(_LYMAN_SERIES, _COEFFICIENTS, strict=True):
        depth += np.where(wave < line, coefficient * (observed / line) ** 3.46, 0.0)
    depth += np.where(wave < _LYMAN_SERIES[0], 0.0017 * (observed / _LYMAN_SERIES[0]) ** 1.68, 0.0)
    x = np.maximum(observed / _LIMIT, 1.0)
    emitted = 1 + redshift
    continuum = (
        0.25 * x**3 * (emitted**0.46 - x**0.46)
        + 9.4 * x**1.5 * (emitted**0.18 - x**0.18)
        - 0.7 * x**3 * (x**-1.32 - emitted**-1.32)
        - 0.023 * (emitted**1.68 - x**1.68)
    )
    depth += np.where(wave < _LIMIT, np.maximum(continuum, 0.0), 0.0)
    return np.exp(-depth)


def transmission_table(wave: np.ndarray, redshifts: np.ndarray) -> np.ndarray:
    """`madau_transmission` at every redshift (redshift, wave)."""
    return np.array([madau_transmission(wave, redshift) for redshift in redshifts])
