"""The model of one galaxy: prior, emulator and likelihood put together."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST, AbstractPrior
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.photometry import Photometry

_ROUNDING = 1e-4


class GalaxyModel(eqx.Module):
    """Joint density of the base-space parameters u and the photometry of one galaxy.

    Args:
        emulator: theta to noiseless fluxes.
        likelihood: noiseless fluxes to photometry.
        prior: density and transport of u.

    Raises:
        ConfigurationError: emulator and likelihood differ in their number of bands.
    """

    emulator: AbstractEmulator
    likelihood: Likelihood
    prior: AbstractPrior

    def __check_init__(self):
        n_zero_points = self.likelihood.zero_points.shape[-1]
        if n_zero_points != len(self.emulator.bands):
            raise ConfigurationError(
                f"one zero point for each of the bands {', '.join(self.emulator.bands)}",
                f"{n_zero_points} zero points",
                "galaxy model",
            )

    @property
    def space(self) -> ParameterSpace:
        """The parameters."""
        return self.prior.space

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands, in the order of the photometry."""
        return self.emulator.bands

    def theta(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Physical parameters of a base-space point."""
        return to_physical(self.space, self.prior.transport(u))

    def predict(self, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """Noiseless fluxes as the data would show them, zero points included [nanomaggies]."""
        return self.likelihood.zero_points * self.emulator(theta)

    def moments(self, theta: Float[Array, " param"]):
        """Predicted fluxes (band,) [nanomaggies] and the model's own variance (band,) [nanomaggies^2]."""
        return self.likelihood.moments(self.emulator(theta), self.emulator.sigma(self.redshift(theta)))

    def redshift(self, theta: Float[Array, " param"]) -> Scalar:
        """The redshift among the parameters; zero if the model has none."""
        if "redshift" not in self.space.names:
            return jnp.zeros((), theta.dtype)
        return theta[self.space.index("redshift")]

    def covers(self, redshift: Scalar):
        """Whether the emulator knows a redshift, () bool."""
        low, high = self.emulator.redshift_range
        return (redshift >= low - _ROUNDING) & (redshift <= high + _ROUNDING)

    def log_likelihood_of_moments(self, predicted, model_variance, redshift, photometry: Photometry):
        """Ln p(photometry | model) from stored `moments` and the redshift: no network is evaluated.

        Redshifts outside the emulator's range have no likelihood: a prior that reaches further is cut there.
        """
        flux_term = self.likelihood.log_prob_scaled(predicted, model_variance, photometry)
        total = flux_term + self.likelihood.redshift_log_prob(redshift, photometry)
        known = jnp.isfinite(total) & self.covers(redshift)
        return jnp.where(known, jnp.maximum(total, LOWEST), LOWEST)

    def log_likelihood(self, u: Float[Array, " param"], photometry: Photometry) -> Scalar:
        """Ln p(photometry | u), known redshift included; finite for every u."""
        theta = self.theta(u)
        predicted, variance = self.moments(theta)
        return self.log_likelihood_of_moments(predicted, variance, self.redshift(theta), photometry)

    def log_prior(self, u: Float[Array, " param"]) -> Scalar:
        """Ln of the base density; finite for every u."""
        density = self.prior.base_log_prob(u)
        return jnp.where(jnp.isnan(density), LOWEST, jnp.maximum(density, LOWEST))

    def log_target(self, u: Float[Array, " param"], photometry: Photometry) -> Scalar:
        """Ln p(u) + ln p(photometry | u): the unnormalised posterior in base space."""
        return self.log_prior(u) + self.log_likelihood(u, photometry)

    def simulate(self, key, flux_err, state, limit_sigma: float = 3.0):
        """A galaxy from the prior and its noisy photometry.

        Args:
            key: random key.
            flux_err: (band,) 1-sigma errors [nanomaggies].
            state: (band,) `BandState`; LIMIT bands are censored at `limit_sigma` flux_err.
            limit_sigma: height of the limits.

        Returns:
            theta (param,), Photometry without a known redshift.
        """
        draw_key, noise_key = jax.random.split(key)
        theta = self.theta(self.prior.sample_base(draw_key))
        return theta, self.observe(noise_key, theta, flux_err, state, limit_sigma)

    def observe(self, key, theta, flux_err, state, limit_sigma: float = 3.0) -> Photometry:
        """Noisy photometry of given parameters; arguments as for `simulate`."""
        sigma = self.emulator.sigma(self.redshift(theta))
        flux, state = self.likelihood.simulate(key, self.emulator(theta), sigma, flux_err, state, limit_sigma)
        unknown = jnp.full((), jnp.nan, flux.dtype)
        return Photometry(flux, flux_err, state, unknown, unknown)
