"""Probability of photometry given noiseless model fluxes.

Each observed band contributes the density of its flux, each limit the probability that the flux
fell below it. The standard deviation holds the measurement, a fractional floor and the emulator's
own error; the last two scale with the model, so -ln sigma belongs to the density.
"""

from math import lgamma, log, pi
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, log_ndtr
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import BandState, Photometry

Family = Literal["student_t", "gaussian"]
_LARGEST_RESIDUAL = 1e12


def _log_student_cdf(x, nu: float):
    """Ln of the Student-t CDF, without cancellation in either tail."""
    if nu == 2.0:
        radius = jnp.sqrt(2.0 + x * x)
        tail = 1.0 / (radius * (radius + jnp.abs(x)))  # CDF(-|x|), from 1 - x / sqrt(2 + x^2)
    else:
        fraction = nu / (nu + x * x)
        leading = jnp.exp(0.5 * nu * jnp.log(fraction) - log(0.5 * nu) - _log_beta(0.5 * nu, 0.5))
        # betainc loses its small values before the leading term of its series becomes inexact.
        tail = 0.5 * jnp.where(fraction < 1e-6, leading, betainc(0.5 * nu, 0.5, jnp.maximum(fraction, 1e-6)))
    return jnp.where(x < 0.0, jnp.log(tail), jnp.log1p(-tail))


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


class Likelihood(eqx.Module):
    """Student-t or Gaussian noise with zero points, error floor, limits and missing bands.

    Args:
        zero_points: (band,) factors on the emulator's fluxes that bring them to the data's scale.
        error_floor: (band,) fractional 1-sigma floor, relative to the model flux.
        family: `student_t` (the reference, nu = 2) or `gaussian`.
        nu: degrees of freedom of the Student-t.
        redshift_floor: smallest width of a known redshift, in units of 1 + z; also its width where
            the data give none.

    Raises:
        ConfigurationError: the family is unknown, or nu is not positive.
    """

    zero_points: Float[Array, " band"]
    error_floor: Float[Array, " band"]
    family: Family = eqx.field(static=True, default="student_t")
    nu: float = eqx.field(static=True, default=2.0)
    redshift_floor: float = eqx.field(static=True, default=1e-3)

    def __init__(self, zero_points, error_floor, family="student_t", nu=2.0, redshift_floor=1e-3):
        if family not in ("student_t", "gaussian"):
            raise ConfigurationError("student_t or gaussian", repr(family), "likelihood.family")
        if not nu > 0:
            raise ConfigurationError("a positive number of degrees of freedom", repr(nu), "likelihood.nu")
        self.zero_points = jnp.asarray(zero_points, jnp.float32)
        self.error_floor = jnp.broadcast_to(jnp.asarray(error_floor, jnp.float32), self.zero_points.shape)
        self.family, self.nu, self.redshift_floor = family, float(nu), float(redshift_floor)

    def log_prob(
        self,
        model_flux: Float[Array, " band"],
        emulator_sigma: Float[Array, " band"],
        photometry: Photometry,
    ) -> Scalar:
        """Ln p(photometry | model), redshift datum excluded.

        Args:
            model_flux: emulator fluxes, before zero points [nanomaggies].
            emulator_sigma: fractional emulator error.
            photometry: of one galaxy; missing bands drop out.
        """
        return self.log_prob_scaled(*self.moments(model_flux, emulator_sigma), photometry)

    def moments(self, model_flux, emulator_sigma):
        """Flux as the data would show it, and the variance that comes with the model.

        Returns:
            predicted (band,) [nanomaggies] and model variance (band,) [nanomaggies^2].
        """
        predicted = self.zero_points * model_flux
        return predicted, (self.error_floor**2 + emulator_sigma**2) * predicted**2

    def log_prob_scaled(self, predicted, model_variance, photometry: Photometry) -> Scalar:
        """`log_prob` from the output of `moments`."""
        # Band by band: compilers fuse a sum of terms, but not a reduction over a short axis, and the
        # pass over a prior pool has to cost a nanosecond per band.
        observed = sum(
            jnp.where(photometry.state[band] == BandState.OBSERVED, density, 0.0)
            for band, (_, density) in self._terms(predicted, model_variance, photometry)
        )
        limits = jax.lax.cond(
            jnp.any(photometry.state == BandState.LIMIT),
            lambda: sum(
                jnp.where(photometry.state[band] == BandState.LIMIT, self.log_cdf(residual), 0.0)
                for band, (residual, _) in self._terms(predicted, model_variance, photometry)
            ),
            lambda: jnp.zeros_like(observed),
        )
        total = observed + limits
        return jnp.where(jnp.isnan(total), LOWEST, jnp.maximum(total, LOWEST))

    def _terms(self, predicted, model_variance, photometry: Photometry):
        """Yields band, (standardised residual, ln density)."""
        # In units of the measurement's error neither squares nor their sums leave float32.
        scale, log_error = 1.0 / photometry.flux_err, jnp.log(photometry.flux_err)
        for band in range(len(self.zero_points)):
            variance = 1.0 + jnp.minimum(model_variance[band] * scale[band] * scale[band], 1e30)
            residual = (photometry.flux[band] - predicted[band]) * scale[band] * jax.lax.rsqrt(variance)
            residual = jnp.clip(residual, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
            density = self._log_density(residual) - log_error[band] - 0.5 * jnp.log(variance)
            yield band, (residual, density)

    def redshift_width(self, photometry: Photometry):
        """Standard deviation of a known redshift: the given one, but not less than the floor."""
        datum = jnp.where(jnp.isfinite(photometry.redshift), photometry.redshift, 0.0)
        given = jnp.where(jnp.isfinite(photometry.redshift_err), photometry.redshift_err, 0.0)
        return jnp.maximum(given, self.redshift_floor * (1.0 + datum))

    def redshift_log_prob(self, redshift, photometry: Photometry) -> Float[Array, "..."]:
        """Ln p(known redshift | redshift): Gaussian; zero where none is known."""
        known = jnp.isfinite(photometry.redshift)
        datum = jnp.where(known, photometry.redshift, 0.0)
        width = self.redshift_width(photometry)
        residual = jnp.clip((datum - redshift) / width, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
        return jnp.where(known, -0.5 * residual**2 - jnp.log(width) - 0.5 * log(2 * pi), 0.0)

    def discrepancy(self, residual):
        """-2 ln density of standardised residuals, up to a constant: chi^2 for the Gaussian."""
        if self.family == "gaussian":
            return residual**2
        return (self.nu + 1.0) * jnp.log1p(residual**2 / self.nu)

    def standard_noise(self, key, shape):
        """Draws of standardised residuals."""
        if self.family == "gaussian":
            return jax.random.normal(key, shape)
        if self.nu == 2.0:
            uniform = jax.random.uniform(key, shape, minval=1e-7, maxval=1.0 - 1e-7)
            return (2.0 * uniform - 1.0) / jnp.sqrt(2.0 * uniform * (1.0 - uniform))
        return jax.random.t(key, self.nu, shape)

    def simulate(self, key, model_flux, emulator_sigma, flux_err, state, limit_sigma: float = 3.0):
        """Noisy photometry of one galaxy.

        A band whose `state` is LIMIT is censored: below `limit_sigma` flux_err it becomes a limit of
        that height, above it an observation. Missing bands stay missing.

        Returns:
            flux (band,), state (band,) int8.
        """
        predicted, variance = self.moments(model_flux, emulator_sigma)
        noise = self.standard_noise(key, predicted.shape)
        flux = predicted + noise * jnp.sqrt(flux_err**2 + variance)
        limit = limit_sigma * flux_err
        censored = (state == BandState.LIMIT) & (flux < limit)
        detected = jnp.where(censored, BandState.LIMIT.value, BandState.OBSERVED.value)
        new_state = jnp.where(state == BandState.MISSING, BandState.MISSING.value, detected)
        return jnp.where(censored, limit, flux), new_state.astype(jnp.int8)

    def _log_density(self, residual):
        if self.family == "gaussian":
            return -0.5 * residual**2 - 0.5 * log(2 * pi)
        constant = lgamma(0.5 * (self.nu + 1)) - lgamma(0.5 * self.nu) - 0.5 * log(self.nu * pi)
        return constant - 0.5 * (self.nu + 1.0) * jnp.log(1.0 + residual**2 / self.nu)

    def log_cdf(self, residual):
        """Ln CDF of standardised residuals."""
        return log_ndtr(residual) if self.family == "gaussian" else _log_student_cdf(residual, self.nu)
