r"""The likelihood of many model fluxes for one galaxy, with two logarithms per draw instead of two per band.

For Student-t noise with nu degrees of freedom the product over bands is

.. math:: \ln L = C - \tfrac12 \ln P - \tfrac{\nu + 1}{2} (\ln Q - \ln P), \quad
          P = \prod_b v_b, \quad Q = \prod_b (v_b + d_b^2 / \nu),

with v the variance and d the difference of data and model, in units of the measurement's error. Products
of many bands leave the range of float32, so their binary exponents are taken out and kept as integers.
"""

from math import lgamma, log, pi
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import BandState, Photometry

_LARGEST = 1e9  # of flux over error: the product of four such is a float32
_MANTISSA, _ONE, _BITS, _BIAS = 0x7FFFFF, 0x3F800000, 23, 127


def log_prob_of_fluxes(
    likelihood: Likelihood,
    flux: Float[Array, "band draw"],
    fractional_variance: Float[Array, "band draw"],
    photometry: Photometry,
    absolute_variance: Float[Array, "band draw"] | None = None,
) -> Float[Array, " draw"]:
    """Ln p(photometry | model) for many draws, redshift datum excluded: `Likelihood.log_prob`, faster.

    Args:
        likelihood: noise model.
        flux: emulator fluxes, before zero points [nanomaggies].
        fractional_variance: error floor and emulator, in units of the squared flux.
        photometry: of one galaxy.
        absolute_variance: further variance of the fluxes, before zero points [nanomaggies^2].
    """
    product, quotient, chi2 = _Product(), _Product(), 0.0
    for band in range(len(likelihood.zero_points)):
        observed = photometry.state[band] == BandState.OBSERVED
        # A band that is not observed has no weight: variance 1 and difference 0, a factor of 1.
        scale = jnp.where(observed, 1.0 / photometry.flux_err[band], 0.0)
        gain = scale * likelihood.zero_points[band]
        predicted = jnp.clip(gain * flux[band], -_LARGEST, _LARGEST)
        variance = 1.0 + fractional_variance[band] * predicted * predicted
        if absolute_variance is not None:
            variance += jnp.minimum(gain * gain * absolute_variance[band], _LARGEST**2)
        difference = predicted - jnp.clip(scale * photometry.flux[band], -_LARGEST, _LARGEST)
        product = product.times(variance)
        if likelihood.family == "gaussian":
            chi2 += difference * difference / variance
        else:
            quotient = quotient.times(variance + difference * difference / likelihood.nu)
    total = _constant(likelihood, photometry) - 0.5 * product.log()
    if likelihood.family == "gaussian":
        total -= 0.5 * chi2
    else:
        total -= 0.5 * (likelihood.nu + 1.0) * (quotient.log() - product.log())
    return jnp.maximum(total + _limits(likelihood, flux, fractional_variance, photometry), LOWEST)


def _constant(likelihood: Likelihood, photometry: Photometry):
    """Part of ln L that draws share: normalisation and errors of the observed bands."""
    observed = photometry.state == BandState.OBSERVED
    each = -0.5 * log(2 * pi)
    if likelihood.family != "gaussian":
        nu = likelihood.nu
        each = lgamma(0.5 * (nu + 1)) - lgamma(0.5 * nu) - 0.5 * log(nu * pi)
    return jnp.sum(jnp.where(observed, each - jnp.log(photometry.flux_err), 0.0))


def _limits(likelihood: Likelihood, flux, fractional_variance, photometry: Photometry):
    """Ln probability that the fluxes fell below the limits; evaluated only where there are any."""

    def evaluate():
        total = jnp.zeros(flux.shape[1:])
        for band in range(len(likelihood.zero_points)):
            scale = 1.0 / photometry.flux_err[band]
            predicted = jnp.clip(scale * likelihood.zero_points[band] * flux[band], -_LARGEST, _LARGEST)
            sigma = jnp.sqrt(1.0 + fractional_variance[band] * predicted * predicted)
            log_cdf = likelihood.log_cdf((scale * photometry.flux[band] - predicted) / sigma)
            total += jnp.where(photometry.state[band] == BandState.LIMIT, log_cdf, 0.0)
        return total

    limited = jnp.any(photometry.state == BandState.LIMIT)
    return jax.lax.cond(limited, evaluate, lambda: jnp.zeros(flux.shape[1:]))


class _Product:
    """A running product of numbers between one and 1e19, as mantissa and binary exponent.

    Two factors fit into a float32 together, so the exponent is taken out after every second.
    """

    def __init__(self, value: Any = 1.0, exponent: Any = 0, is_full: bool = False):
        self._value, self._exponent, self._is_full = value, exponent, is_full

    def times(self, factor) -> "_Product":
        if not self._is_full:
            return _Product(self._value * factor, self._exponent, True)
        mantissa, exponent = _split(self._value * factor)
        return _Product(mantissa, self._exponent + exponent, False)

    def log(self):
        mantissa, exponent = _split(self._value) if self._is_full else (self._value, 0)
        return jnp.log(mantissa) + log(2.0) * (self._exponent + exponent)


def _split(value) -> tuple[Any, Any]:
    """Mantissa in [1, 2) and exponent of positive numbers."""
    bits = jax.lax.bitcast_convert_type(value, jnp.int32)
    mantissa = jax.lax.bitcast_convert_type((bits & _MANTISSA) | _ONE, jnp.float32)
    return mantissa, (bits >> _BITS) - _BIAS
