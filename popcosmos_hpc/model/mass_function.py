"""Joint prior of redshift and mass: a galaxy stellar mass function times the comoving volume."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from astropy.cosmology import Planck18
from jaxtyping import Array, Float, Scalar

MASS_RANGE = (7.0, 13.0)
"""Range of log10 mass formed [Msun] of the prior."""

# Leja et al. 2020 (arXiv:1910.04168), double Schechter function, values at the anchor redshifts.
_ANCHORS = (0.2, 1.6, 3.0)
_LOG_PHI_1 = (-2.44, -3.08, -4.14)
_LOG_PHI_2 = (-2.89, -3.29, -3.51)
_LOG_MASS = (10.79, 10.88, 10.84)
_SLOPES = (-0.28, -1.48)
_CLAMP = 3.0  # the quadratics in redshift are fits to z < 3; beyond, they turn over and run away

_COSMOLOGY: Any = Planck18  # astropy declares no type for it
_DEGREE = 14
_GRID = 241
_WIDE_OFFSET = 0.3
_WIDE_FRACTION = 0.8


def _quadratic(values: tuple[float, ...]) -> np.ndarray:
    return np.polyfit(_ANCHORS, values, 2).astype(np.float32)


def log_mass_function(log_mass: Scalar, redshift: Scalar) -> Scalar:
    """Ln of the number density per dex and comoving Mpc^3 (Leja et al. 2020).

    The coefficients are evaluated at min(redshift, 3).

    Args:
        log_mass: log10 of mass [Msun].
        redshift: redshift.
    """
    at = jnp.minimum(redshift, _CLAMP)
    coefficients = (_LOG_PHI_1, _LOG_PHI_2, _LOG_MASS)
    log_phi_1, log_phi_2, log_knee = (jnp.polyval(jnp.asarray(_quadratic(c)), at) for c in coefficients)
    offset = (log_mass - log_knee) * np.log(10.0)
    first = log_phi_1 * np.log(10.0) + (_SLOPES[0] + 1.0) * offset
    second = log_phi_2 * np.log(10.0) + (_SLOPES[1] + 1.0) * offset
    return jnp.logaddexp(first, second) - jnp.exp(offset) + np.log(np.log(10.0))


class MassRedshift(eqx.Module):
    """p(redshift, log10 mass) proportional to mass function x dV/dz over a rectangle.

    Distances are astropy's Planck18, carried as Chebyshev series in ln(1 + z): smooth, and without the
    lookups of a table.

    Args:
        redshift_min: lower end of the redshift range, above zero.
        redshift_max: upper end.
    """

    distance: Float[Array, " coefficient"]
    volume: Float[Array, " coefficient"]
    redshift_cdf: Float[Array, " node"]
    log_norm: Scalar
    redshift_min: float = eqx.field(static=True)
    redshift_max: float = eqx.field(static=True)

    def __init__(self, redshift_min: float, redshift_max: float):
        self.redshift_min, self.redshift_max = float(redshift_min), float(redshift_max)
        x = 0.5 * (1.0 - np.cos(np.pi * (np.arange(200) + 0.5) / 200))
        redshift = np.expm1(self._log_range()[0] + x * self._log_range()[1])
        modulus = np.asarray(_COSMOLOGY.distmod(redshift).value) - 5.0 * np.log10(redshift)
        volume = np.log(4 * np.pi * _COSMOLOGY.differential_comoving_volume(redshift).value / redshift**2)
        fit = lambda y: np.polynomial.chebyshev.chebfit(2.0 * x - 1.0, y, _DEGREE)  # noqa: E731
        self.distance = jnp.asarray(fit(modulus), jnp.float32)
        self.volume = jnp.asarray(fit(volume), jnp.float32)
        nodes = np.linspace(0.0, 1.0, 4001)
        cdf, total = self._tabulate(nodes)
        # Inverse CDF on equal steps of probability would waste nodes on the tails: keep CDF on nodes.
        self.redshift_cdf = jnp.asarray(cdf, jnp.float32)
        self.log_norm = jnp.asarray(np.log(total), jnp.float32)

    def _log_range(self) -> tuple[float, float]:
        low, high = np.log1p(self.redshift_min), np.log1p(self.redshift_max)
        return float(low), float(high - low)

    def _tabulate(self, nodes: np.ndarray) -> tuple[np.ndarray, float]:
        """Cumulative probability at nodes of the scaled ln(1 + z), and the integral over the rectangle."""
        redshift = np.expm1(self._log_range()[0] + nodes * self._log_range()[1])
        volume = 4 * np.pi * _COSMOLOGY.differential_comoving_volume(redshift).value
        mass = np.linspace(*MASS_RANGE, _GRID)
        log_phi = np.asarray(
            jax.vmap(jax.vmap(log_mass_function, (0, None)), (None, 0))(
                jnp.asarray(mass, jnp.float32), jnp.asarray(redshift, jnp.float32)
            ),
            np.float64,
        )
        integral = np.trapezoid(np.exp(log_phi), mass, axis=1) * volume * (1.0 + redshift)
        step = np.diff(nodes) * self._log_range()[1]
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (integral[1:] + integral[:-1]) * step)])
        return cumulative / cumulative[-1], float(cumulative[-1])

    def _scaled(self, redshift):
        low, width = self._log_range()
        return jnp.clip((jnp.log1p(redshift) - low) / width, 0.0, 1.0)

    def distance_modulus(self, redshift: Scalar) -> Scalar:
        """Planck18 distance modulus [mag] inside the redshift range."""
        return _chebyshev(self.distance, self._scaled(redshift)) + 5.0 * jnp.log10(redshift)

    def log_prob(self, redshift: Scalar, log_mass: Scalar) -> Scalar:
        """Normalised ln p(redshift, log10 mass); arguments must lie in the rectangle."""
        log_volume = _chebyshev(self.volume, self._scaled(redshift)) + 2.0 * jnp.log(redshift)
        return log_mass_function(log_mass, redshift) + log_volume - self.log_norm

    def sample(self, key) -> tuple[Scalar, Scalar]:
        """Draw redshift and log10 mass."""
        for_redshift, for_mass = jax.random.split(key)
        nodes = jnp.linspace(0.0, 1.0, self.redshift_cdf.shape[0])
        scaled = jnp.interp(jax.random.uniform(for_redshift), self.redshift_cdf, nodes)
        low, width = self._log_range()
        redshift = jnp.expm1(low + width * scaled)
        return redshift, self._sample_mass(for_mass, redshift)

    def _sample_mass(self, key, redshift):
        mass = jnp.linspace(*MASS_RANGE, _GRID)
        density = jnp.exp(jax.vmap(log_mass_function, (0, None))(mass, redshift))
        cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(0.5 * (density[1:] + density[:-1]))])
        return jnp.interp(jax.random.uniform(key), cumulative / cumulative[-1], mass)

    def sample_wide(self, key):
        """Draw from a wide mixture that covers bright and nearby galaxies.

        A share of the draws comes from the prior, the rest from a density proportional to
        1 / (redshift + 0.3), uniform in log10 mass.

        Returns:
            redshift, log10 mass, ln p - ln q.
        """
        choose, narrow_key, for_redshift, for_mass = jax.random.split(key, 4)
        span = np.log((self.redshift_max + _WIDE_OFFSET) / (self.redshift_min + _WIDE_OFFSET))
        wide_redshift = (self.redshift_min + _WIDE_OFFSET) * jnp.exp(
            span * jax.random.uniform(for_redshift)
        ) - _WIDE_OFFSET
        wide_mass = jax.random.uniform(for_mass, minval=MASS_RANGE[0], maxval=MASS_RANGE[1])
        wide = jax.random.uniform(choose) < _WIDE_FRACTION
        redshift, log_mass = self.sample(narrow_key)
        redshift = jnp.clip(jnp.where(wide, wide_redshift, redshift), self.redshift_min, self.redshift_max)
        log_mass = jnp.where(wide, wide_mass, log_mass)
        log_p = self.log_prob(redshift, log_mass)
        log_wide = -jnp.log(redshift + _WIDE_OFFSET) - np.log(span * (MASS_RANGE[1] - MASS_RANGE[0]))
        log_q = jnp.logaddexp(np.log(_WIDE_FRACTION) + log_wide, np.log1p(-_WIDE_FRACTION) + log_p)
        return redshift, log_mass, log_p - log_q


def _chebyshev(coefficients, x):
    """Clenshaw's recurrence for x in [0, 1]."""
    t = 2.0 * x - 1.0
    first, second = jnp.zeros_like(t), jnp.zeros_like(t)
    for index in range(coefficients.shape[0] - 1, 0, -1):
        first, second = coefficients[index] + 2.0 * t * first - second, first
    return coefficients[0] + t * first - second
