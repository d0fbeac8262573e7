"""Numbers of galaxies over mass and redshift: published mass functions joined at redshift 3."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from astropy.cosmology import Planck18
from scipy.interpolate import PchipInterpolator

_COSMOLOGY: Any = Planck18  # astropy declares no type for it

SQUARE_DEGREES = 4 * np.pi * (180 / np.pi) ** 2
MASS_RANGE = (7.0, 12.5)
"""Range of log10 surviving mass [Msun] of the draws."""
REDSHIFT_RANGE = (0.002, 5.999)

# Leja et al. 2020 (arXiv:1910.04168), continuity model: medians at the anchor redshifts.
_ANCHORS = (0.2, 1.6, 3.0)
_LOG_PHI_1 = (-2.44, -3.08, -4.14)
_LOG_PHI_2 = (-2.89, -3.29, -3.51)
_LOG_KNEE = (10.79, 10.88, 10.84)
_SLOPE_1, _SLOPE_2 = -0.28, -1.48

# Weaver et al. 2023 (arXiv:2212.02512), single Schechter fits to all galaxies of COSMOS2020 in the
# redshift bins 3.5-4.5, 4.5-5.5, 5.5-6.5 and 6.5-7.5; the slope is held at -1.46 there.
_DISTANT = (4.0, 5.0, 6.0, 7.0)
_DISTANT_PHI = (0.20e-3, 0.14e-3, 0.06e-3, 0.03e-3)
_DISTANT_KNEE = (10.46, 10.30, 10.14, 10.18)
_DISTANT_SLOPE = -1.46
_FADED = 4.0  # where the second, steep-edged component of the nearer universe has gone


class SchechterPair(NamedTuple):
    """Coefficients of a double Schechter function, each broadcast over redshift.

    Attributes:
        phi_1: number density [Mpc^-3] of the component with slope `slope_1`.
        phi_2: that of the component with slope `slope_2`.
        log_knee: log10 of the common knee [Msun].
        slope_1: low-mass slope of the first component.
        slope_2: low-mass slope of the second.
    """

    phi_1: np.ndarray
    phi_2: np.ndarray
    log_knee: np.ndarray
    slope_1: np.ndarray
    slope_2: np.ndarray


@lru_cache(maxsize=1)
def _distant() -> dict[str, PchipInterpolator]:
    """Monotone cubics through the anchor at redshift 3 and the bins beyond: no value is extrapolated."""
    nodes = (_ANCHORS[-1], *_DISTANT)
    columns = {
        "phi": (_LOG_PHI_2[-1], *np.log10(_DISTANT_PHI)),
        "knee": (_LOG_KNEE[-1], *_DISTANT_KNEE),
        "slope": (_SLOPE_2, *(_DISTANT_SLOPE,) * len(_DISTANT)),
    }
    return {name: PchipInterpolator(nodes, values) for name, values in columns.items()}


def schechter_pair(redshift: np.ndarray) -> SchechterPair:
    """Coefficients at a redshift: Leja et al. 2020 to redshift 3, joined to Weaver et al. 2023.

    Below redshift 0.2 the coefficients are held at that anchor. Between 3 and 4 the knee, the slope and
    the normalisation of the steep component run monotonically from one to the other, and the flat
    component fades out linearly. The table ends at 7.

    Args:
        redshift: any shape, from 0 to 7.
    """
    redshift = np.asarray(redshift, float)
    near = np.clip(redshift, _ANCHORS[0], _ANCHORS[-1])
    phi_1, phi_2, knee = (
        np.polyval(np.polyfit(_ANCHORS, values, 2), near) for values in (_LOG_PHI_1, _LOG_PHI_2, _LOG_KNEE)
    )
    far, at = redshift > _ANCHORS[-1], np.clip(redshift, _ANCHORS[-1], _DISTANT[-1])
    curves = _distant()
    fading = np.clip((_FADED - redshift) / (_FADED - _ANCHORS[-1]), 0.0, 1.0)
    return SchechterPair(
        10**phi_1 * fading,
        10 ** np.where(far, curves["phi"](at), phi_2),
        np.where(far, curves["knee"](at), knee),
        np.full_like(redshift, _SLOPE_1),
        np.where(far, curves["slope"](at), _SLOPE_2),
    )


def mass_function(log_mass: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Number density of galaxies per dex and comoving Mpc^3.

    Args:
        log_mass: log10 of surviving mass [Msun], broadcast against `redshift`.
        redshift: from 0 to 7.
    """
    pair = schechter_pair(redshift)
    ratio = 10 ** (np.asarray(log_mass) - pair.log_knee)
    power = pair.phi_1 * ratio ** (pair.slope_1 + 1) + pair.phi_2 * ratio ** (pair.slope_2 + 1)
    return np.log(10) * np.exp(-ratio) * power


def volume_element(redshift: np.ndarray) -> np.ndarray:
    """Comoving volume per unit redshift of the whole sky [Mpc^3], Planck 2018."""
    return 4 * np.pi * _COSMOLOGY.differential_comoving_volume(np.asarray(redshift)).value


class MassRedshiftCells:
    """Draws of redshift and mass from mass function x dV/dz above a mass that depends on redshift.

    The plane of ln(1 + z) and log10 mass is cut into cells in which the density is constant; at 0.01 dex
    and 0.004 in ln(1 + z) the steepest change across a cell, at the massive end, is a few percent.

    Args:
        log_mass_limit: function of redshift (cell,) giving the log10 mass below which none is drawn.
    """

    def __init__(self, log_mass_limit, n_redshift: int = 512, n_mass: int = 550):
        low, high = np.log1p(REDSHIFT_RANGE)
        self._redshift_edges = np.linspace(low, high, n_redshift + 1)
        self._mass_edges = np.linspace(*MASS_RANGE, n_mass + 1)
        middle = np.expm1(0.5 * (self._redshift_edges[1:] + self._redshift_edges[:-1]))
        mass = 0.5 * (self._mass_edges[1:] + self._mass_edges[:-1])
        width = np.diff(self._redshift_edges)[:, None] * np.diff(self._mass_edges)[None, :]
        numbers = mass_function(mass[None, :], middle[:, None]) * width
        numbers *= (volume_element(middle) * (1 + middle))[:, None]
        numbers[self._mass_edges[None, 1:] < log_mass_limit(middle)[:, None]] = 0.0
        self._cumulative = np.cumsum(numbers.ravel())

    @property
    def per_square_degree(self) -> float:
        """Galaxies per square degree in all cells."""
        return float(self._cumulative[-1] / SQUARE_DEGREES)

    def sample(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Redshifts (n,) and log10 surviving masses (n,)."""
        cell = np.searchsorted(self._cumulative, rng.uniform(0, self._cumulative[-1], n), side="right")
        row, column = np.divmod(cell, len(self._mass_edges) - 1)
        inside = rng.uniform(size=(2, n))
        log1pz = self._redshift_edges[row] + inside[0] * np.diff(self._redshift_edges)[row]
        return np.expm1(log1pz), self._mass_edges[column] + inside[1] * np.diff(self._mass_edges)[column]
