r"""Importance sampling from a pool with the normalisation drawn anew: many draws' worth from each.

Fluxes scale as :math:`10^{-0.4 N}`, so a draw whose colours fit is of use whatever its own N. Tiles and
then draws are weighed by the likelihood at their best amplitudes; each draw that is left gets one new N from
a Student-t around its own best amplitude, with the weight

.. math:: w = \frac{L(N)\, q(N \mid \mathrm{rest})}{g(N)} \frac{n_t}{q_t},

where g is the proposal and q(N | rest) the density of a student of the population. Weights are exact for the
prior p(rest) q(N | rest); the student carries how far that is from the population itself.
"""

from math import exp, log
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from popcosmos_hpc.inference.diagnostics import distinct
from popcosmos_hpc.inference.pool import (
    N_SUB_POOLS,
    Picks,
    Pool,
    PoolSampler,
    PoolTables,
    decode_rows,
    pick_rows,
    redshift_term,
    systematic_tiles,
    theta_of_rows,
    tile_redshift_term,
)
from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.inference.start import apart, shuffled_resample
from popcosmos_hpc.inference.weighted import Drawn, WeightedDraws, assess, certificate, predictive_p
from popcosmos_hpc.model.amplitude import AmplitudeConditional
from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.model.transforms import to_latent
from popcosmos_hpc.photometry import BandState, Photometry

MAGNITUDE = 2.5 / log(10.0)
"""Magnitudes per unit of ln flux."""

_LARGEST_LOG = 8.0  # of an amplitude
_ITERATIONS = 3
_INVERSE_STEPS = 12  # of base densities that are stored, not sampled
_STRETCH = 1.2
_GUESSED_WIDTH = 1.3  # mag; about that of q(N | rest)


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
    bands = _Bands(likelihood, flux, fractional_variance, photometry)
    factor = bands.least_squares(None)
    for _ in range(_ITERATIONS):
        factor = bands.least_squares(factor)
    information = jnp.maximum(bands.information(factor), 1e-30)
    return Amplitude(jnp.log(factor), jnp.clip(jax.lax.rsqrt(information), 1e-4, 2.0))


class _Bands:
    """Sums over bands, written out: a compiler then keeps all of a draw's numbers in one loop."""

    def __init__(self, likelihood: Likelihood, flux, fractional_variance, photometry: Photometry):
        observed = photometry.state == BandState.OBSERVED
        scale = jnp.where(observed, 1.0 / photometry.flux_err, 0.0)
        datum = scale * jnp.where(observed, photometry.flux, 0.0)
        self._nu = likelihood.nu if likelihood.family == "student_t" else None
        self._bands = [
            (
                datum[band],
                flux[band] * (scale[band] * likelihood.zero_points[band]),
                fractional_variance[band],
            )
            for band in range(flux.shape[0])
        ]

    def least_squares(self, factor):
        """Best factor (draw,) for weights at a factor; at first, for variances from the data.

        Those of a model that is far too bright would hide every band.
        """
        above, below = 0.0, 1e-30
        for datum, shape, fraction in self._bands:
            model = datum if factor is None else shape * factor
            variance = 1.0 + fraction * model * model
            weight = shape / variance
            if self._nu is not None and factor is not None:
                difference = datum - model
                weight *= (self._nu + 1.0) * variance / (self._nu * variance + difference * difference)
            above += weight * datum
            below += weight * shape
        return jnp.clip(above / below, exp(-_LARGEST_LOG), exp(_LARGEST_LOG))

    def information(self, factor):
        """Expected information (draw,) on the ln of the factor."""
        total = 0.0
        for _, shape, fraction in self._bands:
            square = (shape * factor) ** 2
            total += square / (1.0 + fraction * square)
        return total if self._nu is None else total * ((self._nu + 1.0) / (self._nu + 3.0))


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
        n_values: picks, of the `n_picks` that are weighed at their best amplitudes, that get a new N.
    """

    conditional: AmplitudeConditional | None = None
    n_values: int = eqx.field(static=True, default=4096)

    identifier: ClassVar[int] = 4

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PoolTables) -> AmplitudeState:
        """Nothing is done yet."""
        empty, integers = jnp.zeros(self.n_values), jnp.zeros(self.n_values, jnp.int32)
        draws = WeightedDraws(integers, empty, empty, integers)
        return AmplitudeState(key, draws, empty, jnp.zeros((), bool))

    @property
    def max_draws(self) -> int:
        """A systematic sample of the picks with a new N."""
        return self.n_values

    def step(
        self, state: AmplitudeState, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> AmplitudeState:
        """The whole sample."""
        log_worth = apart(photometry, lambda: weigh_shapes(model, self.pool, shared, photometry))
        pick = lambda: pick_rows(state.key, self.pool, log_worth, self.n_picks, self.defensive)  # noqa: E731
        picks = apart(photometry, pick)
        keys = [jax.random.fold_in(state.key, index) for index in (3, 4)]
        picks = apart(photometry, lambda: self._thin(keys[0], picks, photometry, model, shared))
        draw = lambda: self._draw(keys[1], picks, photometry, model, shared)  # noqa: E731
        draws, normalisation = apart(photometry, draw)
        return AmplitudeState(state.key, draws, normalisation, jnp.ones((), bool))

    def _thin(
        self, key, picks: Picks, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> Picks:
        """The picks for which the student is asked: those whose colours fit, at their best amplitudes."""
        rows = decode_rows(self.pool, shared, picks.row)
        flux = (rows.flux, rows.fractional_variance)
        log_worth = profile(model.likelihood, *flux, photometry)[0] + picks.log_inverse
        log_worth += redshift_term(model, self.pool, rows.redshift_code, photometry)
        worth = jnp.exp(log_worth - jnp.max(log_worth))
        even = self.defensive / self.n_picks
        probability = (1.0 - self.defensive) * worth / jnp.sum(worth) + even
        chosen = systematic_tiles(key, probability, self.n_values)
        log_inverse = picks.log_inverse - jnp.log(probability * self.n_picks)
        return Picks(picks.row[chosen], log_inverse[chosen])

    def _draw(
        self, key, picks: Picks, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> tuple[WeightedDraws, Any]:
        """One new N for each pick, and its weight."""
        rows = decode_rows(self.pool, shared, picks.row)
        theta = theta_of_rows(self.pool, picks.row)
        old = theta[:, model.space.index("N")]
        best = fit_amplitude(model.likelihood, rows.flux, rows.fractional_variance, photometry)
        width = _STRETCH * MAGNITUDE * best.sd
        random, log_proposal = student_t4(key, self.n_values)
        new = old - MAGNITUDE * best.log_factor + width * random
        log_density = jax.vmap(self._student.log_prob)(new, theta)
        gain = jnp.broadcast_to(jnp.exp((old - new) / MAGNITUDE), rows.flux.shape)
        log_likelihood = log_prob_of_fluxes(
            model.likelihood, rows.flux * gain, rows.fractional_variance, photometry
        )
        log_likelihood += redshift_term(model, self.pool, rows.redshift_code, photometry)
        marginal = log_likelihood + log_density - log_proposal + jnp.log(width)
        marginal = jnp.where(jnp.isfinite(marginal), jnp.maximum(marginal, LOWEST), LOWEST)
        # The pool's own effective size is that of its draws' marginal likelihoods, hence the second entry.
        return WeightedDraws(picks.row, marginal + picks.log_inverse, marginal, rows.sub_pool), new

    def finish(
        self,
        state: AmplitudeState,
        photometry: Photometry,
        model: GalaxyModel,
        shared: PoolTables,
        draws: int,
    ) -> Posterior:
        """Draws and certificate."""
        quality = apart(photometry, lambda: assess(state.draws, self.pool.log_n_drawn, N_SUB_POOLS))
        pick = shuffled_resample(jax.random.fold_in(state.key, 2), state.draws.log_weight, draws)
        row, index = state.draws.row[pick], model.space.index("N")
        theta = theta_of_rows(self.pool, row)
        rows = decode_rows(self.pool, shared, row)
        gain = jnp.exp((theta[:, index] - state.normalisation[pick]) / MAGNITUDE)
        flux = rows.flux * jnp.broadcast_to(gain, rows.flux.shape)
        theta = theta.at[:, index].set(state.normalisation[pick])
        log_likelihood = log_prob_of_fluxes(model.likelihood, flux, rows.fractional_variance, photometry)
        drawn = Drawn(
            theta,
            jax.vmap(lambda theta: base_density(model, theta))(theta),
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


def profile(likelihood: Likelihood, flux, fractional_variance, photometry: Photometry, variance=None):
    """Ln of what draws are worth with N drawn anew, (draw,), and their best amplitudes.

    The likelihood at the best amplitude, times its width, times a broad guess at q(N | rest).

    Args:
        likelihood: noise model.
        flux: (band, draw) emulator fluxes [nanomaggies].
        fractional_variance: (band, draw) in squared fluxes.
        photometry: of one galaxy.
        variance: (band, draw) further variance of the fluxes [nanomaggies^2]; scales with the amplitude.
    """
    best = fit_amplitude(likelihood, flux, fractional_variance, photometry)
    gain = jnp.broadcast_to(jnp.exp(best.log_factor), flux.shape)
    blur = None if variance is None else variance * gain**2
    peak = log_prob_of_fluxes(likelihood, flux * gain, fractional_variance, photometry, blur)
    departure = MAGNITUDE * best.log_factor / _GUESSED_WIDTH
    return peak + jnp.log(best.sd) - 0.5 * departure**2, best


def weigh_shapes(model: GalaxyModel, pool: Pool, tables: PoolTables, photometry: Photometry):
    """Ln of what a row of each tile is worth, its N drawn anew, (tile,)."""
    fluxes = (pool.tile_flux, tables.tile_fractional_variance)
    log_worth, _ = profile(model.likelihood, *fluxes, photometry, pool.tile_variance)
    return log_worth + tile_redshift_term(model, pool, photometry)


def student_t4(key, count: int):
    """Draws (count,) of a Student-t of four degrees of freedom, and their ln densities.

    By its closed quantile function (Shaw 2006, J. Comput. Finance 9, 37).
    """
    uniform = jax.random.uniform(key, (count,), minval=1e-6, maxval=1.0 - 1e-6)
    root = jnp.sqrt(4.0 * uniform * (1.0 - uniform))
    quantile = jnp.cos(jnp.arccos(jnp.minimum(root, 1.0)) / 3.0) / root
    draw = jnp.sign(uniform - 0.5) * 2.0 * jnp.sqrt(jnp.maximum(quantile - 1.0, 0.0))
    return draw, log(3.0 / 8.0) - 2.5 * jnp.log1p(draw * draw / 4.0)


def base_density(model: GalaxyModel, theta):
    """Ln base density of a parameter vector (param,), by the flow the other way."""
    return model.prior.base_log_prob(
        model.prior.inverse(to_latent(model.space, theta), n_steps=_INVERSE_STEPS)  # pyright: ignore
    )
