r"""Importance sampling from a pool with the normalisation drawn anew: many draws' worth from each.

Fluxes scale as :math:`10^{-0.4 N}`, so a draw whose colours fit is of use whatever its own N. Tiles are
weighed by the likelihood at their best amplitude; each picked draw gets one new N from a Student-t around its
own best amplitude, with the weight

.. math:: w = \frac{L(N)\, q(N \mid \mathrm{rest})}{g(N)} \frac{n_t}{q_t},

where g is the proposal and q(N | rest) the density of a student of the population. Weights are exact for the
prior p(rest) q(N | rest); the student carries how far that is from the population itself.
"""

from math import lgamma, log, pi
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from popcosmos_hpc.inference.diagnostics import distinct
from popcosmos_hpc.inference.pool import (
    N_SUB_POOLS,
    PoolSampler,
    PoolTables,
    decode_rows,
    pick_rows,
    redshift_term,
    theta_of_rows,
    tile_redshift_term,
)
from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.inference.start import systematic_resample
from popcosmos_hpc.inference.weighted import Drawn, WeightedDraws, assess, certificate, predictive_p
from popcosmos_hpc.model.amplitude import AmplitudeConditional
from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.model.transforms import to_latent
from popcosmos_hpc.photometry import BandState, Photometry

_MAGNITUDE = 2.5 / log(10.0)  # magnitudes per unit of ln flux
_LARGEST_LOG = 8.0  # of an amplitude
_ITERATIONS = 4
_TAIL = 6.0  # degrees of freedom of the proposal
_STRETCH = 1.2
_TILE_WIDTH = 1.3  # mag; about the width of q(N | rest)


class Amplitude(NamedTuple):
    """Best factor on the fluxes of each draw: ln of it, and the standard deviation of that ln; (draw,)."""

    log_factor: Any
    sd: Any


def fit_amplitude(likelihood: Likelihood, flux, fractional_variance, photometry: Photometry) -> Amplitude:
    """Factor on the fluxes of each draw that fits a galaxy best, by reweighted least squares.

    Args:
        likelihood: noise model.
        flux: (band, draw) emulator fluxes [nanomaggies].
        fractional_variance: (band, draw) in squared fluxes.
        photometry: of one galaxy; only observed bands count.
    """
    wide = lambda x: jnp.broadcast_to(x[:, None], flux.shape)  # noqa: E731
    observed = photometry.state == BandState.OBSERVED
    scale = wide(jnp.where(observed, 1.0 / photometry.flux_err, 0.0))
    datum = jnp.where(observed, photometry.flux, 0.0)
    datum, shape = wide(datum) * scale, flux * wide(likelihood.zero_points) * scale
    nu = likelihood.nu if likelihood.family == "student_t" else jnp.inf

    def improve(factor, _):
        model = shape * jnp.broadcast_to(factor, shape.shape)
        variance = 1.0 + fractional_variance * model**2
        weight = 1.0 / variance
        if likelihood.family == "student_t":
            weight *= (nu + 1.0) / (nu + (datum - model) ** 2 / variance)
        best = jnp.sum(weight * shape * datum, 0) / jnp.maximum(jnp.sum(weight * shape**2, 0), 1e-30)
        return jnp.clip(best, jnp.exp(-_LARGEST_LOG), jnp.exp(_LARGEST_LOG)), None

    # Variances from the data at first: those of a model that is far too bright would hide every band.
    weight = 1.0 / (1.0 + fractional_variance * datum**2)
    first = jnp.sum(weight * shape * datum, 0) / jnp.maximum(jnp.sum(weight * shape**2, 0), 1e-30)
    first = jnp.clip(first, jnp.exp(-_LARGEST_LOG), jnp.exp(_LARGEST_LOG))
    factor, _ = jax.lax.scan(improve, first, None, length=_ITERATIONS)
    model = shape * jnp.broadcast_to(factor, shape.shape)
    information = jnp.sum(model**2 / (1.0 + fractional_variance * model**2), 0)
    if likelihood.family == "student_t":
        information *= (nu + 1.0) / (nu + 3.0)
    return Amplitude(jnp.log(factor), jnp.clip(1.0 / jnp.sqrt(jnp.maximum(information, 1e-30)), 1e-4, 2.0))


class AmplitudeState(NamedTuple):
    """State of one galaxy: key, weighted draws, their new N (pick,), and whether they are there."""

    key: Any
    draws: WeightedDraws
    normalisation: Any
    done: Any


class AmplitudeSampler(PoolSampler):
    """Two-stage importance sampling with N drawn anew; settings as for `PoolSampler`.

    Args:
        conditional: q(N | rest).
    """

    conditional: AmplitudeConditional | None = None

    identifier: ClassVar[int] = 4

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PoolTables) -> AmplitudeState:
        """Nothing is done yet."""
        state = super().init(key, photometry, model, shared)
        return AmplitudeState(state.key, state.draws, jnp.zeros(self.n_picks), state.done)

    def step(
        self, state: AmplitudeState, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> AmplitudeState:
        """The whole sample."""
        log_worth = weigh_shapes(model, self.pool, shared, photometry)
        picks = pick_rows(state.key, self.pool, log_worth, self.n_picks, self.defensive)
        rows = decode_rows(self.pool, shared, picks.row)
        theta = theta_of_rows(self.pool, picks.row)
        old = theta[:, model.space.index("N")]
        best = fit_amplitude(model.likelihood, rows.flux, rows.fractional_variance, photometry)
        centre, width = old - _MAGNITUDE * best.log_factor, _STRETCH * _MAGNITUDE * best.sd
        random = jax.random.t(jax.random.fold_in(state.key, 3), _TAIL, (self.n_picks,))
        new = centre + width * random
        log_density = jax.vmap(lambda value, theta: self._student.log_prob(value, theta))(new, theta)
        gain = jnp.broadcast_to(jnp.exp((old - new) / _MAGNITUDE), rows.flux.shape)
        log_likelihood = log_prob_of_fluxes(
            model.likelihood, rows.flux * gain, rows.fractional_variance, photometry
        )
        log_likelihood += redshift_term(model, self.pool, rows.redshift_code, photometry)
        marginal = log_likelihood + log_density - _log_student(random) + jnp.log(width)
        marginal = jnp.where(jnp.isfinite(marginal), jnp.maximum(marginal, LOWEST), LOWEST)
        # The second entry makes the pool's own effective size: that of the draws' marginal likelihoods.
        draws = WeightedDraws(picks.row, marginal + picks.log_inverse, marginal, rows.sub_pool)
        return AmplitudeState(state.key, draws, new, jnp.ones((), bool))

    def finish(
        self,
        state: AmplitudeState,
        photometry: Photometry,
        model: GalaxyModel,
        shared: PoolTables,
        draws: int,
    ) -> Posterior:
        """Draws and certificate."""
        quality = assess(state.draws, self.pool.log_n_drawn, N_SUB_POOLS)
        pick = systematic_resample(jax.random.fold_in(state.key, 2), state.draws.log_weight, draws)
        row, index = state.draws.row[pick], model.space.index("N")
        theta = theta_of_rows(self.pool, row)
        rows = decode_rows(self.pool, shared, row)
        gain = jnp.exp((theta[:, index] - state.normalisation[pick]) / _MAGNITUDE)
        flux = rows.flux * jnp.broadcast_to(gain, rows.flux.shape)
        theta = theta.at[:, index].set(state.normalisation[pick])
        log_likelihood = log_prob_of_fluxes(model.likelihood, flux, rows.fractional_variance, photometry)
        drawn = Drawn(
            theta,
            jax.vmap(lambda theta: _base_density(model, theta))(theta),
            log_likelihood + redshift_term(model, self.pool, rows.redshift_code, photometry),
            row,
            distinct(row),
            predictive_p(model.likelihood, shared.discrepancy, flux, rows.fractional_variance, photometry),
        )
        return certificate(quality, drawn, self.thresholds, self.identifier)

    @property
    def _student(self) -> AmplitudeConditional:
        if self.conditional is None:
            raise ValueError("an amplitude sampler is built with its student")
        return self.conditional


def weigh_shapes(model: GalaxyModel, pool, tables: PoolTables, photometry: Photometry):
    """Ln of what a row of each tile is worth, its N drawn anew, (tile,)."""
    variance = tables.tile_fractional_variance
    best = fit_amplitude(model.likelihood, pool.tile_flux, variance, photometry)
    gain = jnp.broadcast_to(jnp.exp(best.log_factor), pool.tile_flux.shape)
    blur = pool.tile_variance * gain**2
    log_likelihood = log_prob_of_fluxes(model.likelihood, pool.tile_flux * gain, variance, photometry, blur)
    departure = _MAGNITUDE * best.log_factor / _TILE_WIDTH
    total = log_likelihood + jnp.log(best.sd) - 0.5 * departure**2
    return total + tile_redshift_term(model, pool, photometry)


def _log_student(x):
    constant = lgamma(0.5 * (_TAIL + 1)) - lgamma(0.5 * _TAIL) - 0.5 * log(_TAIL * pi)
    return constant - 0.5 * (_TAIL + 1.0) * jnp.log1p(x * x / _TAIL)


def _base_density(model: GalaxyModel, theta):
    """Ln base density of a parameter vector, by the flow the other way."""
    return model.prior.base_log_prob(model.prior.inverse(to_latent(model.space, theta)))  # pyright: ignore
