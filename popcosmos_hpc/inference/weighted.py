"""Weighted draws from a pool: their certificate, and equally weighted draws of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.diagnostics import POOR_FIT_PPP
from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.photometry import BandState

_TABLE_DRAWS = 1 << 15
_TABLE_LEVELS = 512
_TINY = 1e-30
_MAX_AT_EDGE = 0.01  # of the draws; more, and the posterior goes on where the pool has nothing


class WeightedDraws(NamedTuple):
    """Draws with weights.

    Attributes:
        row: (draw,) int32 rows of the pool.
        log_weight: (draw,) ln of importance weights; their mean, over the prior's draws, is the evidence.
        log_likelihood: (draw,).
        sub_pool: (draw,) int32.
    """

    row: Any
    log_weight: Any
    log_likelihood: Any
    sub_pool: Any


class Thresholds(NamedTuple):
    """What a certified posterior satisfies; see `PoolSampler`."""

    ess_min: float
    max_weight: float
    pareto_k_max: float
    evidence_error_max: float
    distinct_min: int


class Quality(NamedTuple):
    """Measures of a weighted sample.

    Attributes:
        ess: effective size, that of the pool included.
        max_weight: largest normalised weight.
        pareto_k: tail index of the weights.
        log_evidence: ln of the mean weight, over the draws behind the pool.
        log_evidence_error: from the scatter of the sub-pools.
    """

    ess: Any
    max_weight: Any
    pareto_k: Any
    log_evidence: Any
    log_evidence_error: Any


def assess(draws: WeightedDraws, log_n_drawn, n_sub_pools: int) -> Quality:
    """Measures of a sample of two stages.

    The variance of a mean over the sample has two parts: that of picking from the pool, 1 / ESS of the
    weights, and that of the pool itself, sum L^2 / (sum L)^2 over its draws; the sample estimates both sums.

    Args:
        draws: the sample.
        log_n_drawn: ln of the draws behind the pool.
        n_sub_pools: independent parts of the pool.
    """
    n_draws = draws.log_weight.shape[0]
    shift, shift_likelihood = jnp.max(draws.log_weight), jnp.max(draws.log_likelihood)
    weight = jnp.exp(draws.log_weight - shift)
    total = jnp.sum(weight)
    of_sample = jnp.sum(weight * weight) / total**2
    squares = jnp.sum(weight * jnp.exp(draws.log_likelihood - shift_likelihood))
    # sum L^2 over (sum L)^2, both over the pool; each sum is a mean of the sample.
    of_pool = squares / total**2 * n_draws * jnp.exp(jnp.minimum(shift_likelihood - shift, 80.0))
    parts = jnp.zeros(n_sub_pools).at[draws.sub_pool].add(weight)
    scatter = jnp.std(parts, ddof=1) / jnp.mean(parts) / jnp.sqrt(float(n_sub_pools))
    return Quality(
        1.0 / (of_sample + of_pool),
        jnp.max(weight) / total,
        pareto_k(weight),
        shift + jnp.log(total) - jnp.log(float(n_draws)) - log_n_drawn,
        scatter,
    )


def pareto_k(weight, n_tail: int | None = None):
    """Tail index of importance weights: generalised Pareto fit of the largest 3 sqrt(n), () .

    Zhang & Stephens 2009, with the weak prior of Vehtari et al. 2024 (arXiv:1507.02646, appendix C).

    Args:
        weight: (draw,) not negative.
        n_tail: how many of the largest to look at.
    """
    n_tail = n_tail or min(int(3 * weight.shape[0] ** 0.5), weight.shape[0] // 5)
    # Seen together with the slices below, the compiler would sort all weights: forty times slower.
    top = jax.lax.optimization_barrier(jax.lax.top_k(weight, n_tail + 1)[0])
    excess = (top[:-1] - top[-1])[::-1]
    largest = jnp.maximum(excess[-1], _TINY)
    excess = excess / largest
    quartile = jnp.maximum(excess[int(n_tail / 4 + 0.5) - 1], 1e-12)
    n_grid = 30 + int(n_tail**0.5)
    grid = jnp.arange(1, n_grid + 1) - 0.5
    b = 1.0 + (1.0 - jnp.sqrt(n_grid / grid)) / (3.0 * quartile)
    k = jnp.mean(jnp.log(jnp.maximum(1.0 - jnp.outer(b, excess), 1e-7)), axis=1)
    log_profile = n_tail * (jnp.log(jnp.maximum(-b / k, _TINY)) - k - 1.0)
    share = jax.nn.softmax(log_profile)
    mean_b = jnp.sum(b * share)
    fitted = jnp.mean(jnp.log(jnp.maximum(1.0 - mean_b * excess, 1e-7)))
    return jnp.where(top[0] > top[-1], (n_tail * fitted + 5.0) / (n_tail + 10.0), -jnp.inf)


def discrepancy_table(likelihood: Likelihood, key):
    """Quantiles (band + 1, level) of the summed discrepancy of n observed bands, for n from 0.

    Replicated residuals follow the likelihood's own family whatever the galaxy, so their distribution is
    drawn once for all.
    """
    n_bands = len(likelihood.zero_points)
    noise = likelihood.standard_noise(key, (_TABLE_DRAWS, n_bands))
    total = jnp.cumsum(likelihood.discrepancy(noise), axis=1)
    level = (jnp.arange(_TABLE_LEVELS) + 0.5) / _TABLE_LEVELS
    # Levels are denser towards the upper end, where a bad fit is told.
    quantiles = jnp.quantile(total, 1.0 - level**3, axis=0).T
    return jnp.concatenate([jnp.zeros((1, _TABLE_LEVELS)), quantiles])


def table_p(table, discrepancy, n_observed):
    """Share of replications with a larger discrepancy; shapes as `discrepancy`."""
    quantiles = table[n_observed][::-1]
    level = ((jnp.arange(_TABLE_LEVELS) + 0.5) / _TABLE_LEVELS) ** 3
    return jnp.interp(discrepancy, quantiles, level[::-1], left=1.0, right=0.0)


class Drawn(NamedTuple):
    """Equally weighted draws.

    Attributes:
        theta: (draw, param).
        log_prior: (draw,) ln base density.
        log_likelihood: (draw,).
        row: (draw,) int32 rows of the pool.
        n_distinct: () how many of them differ.
        ppp: () posterior-predictive p of the observed bands.
        at_edge: () share of the draws within half a magnitude of a limit below which the pool has none.
    """

    theta: Any
    log_prior: Any
    log_likelihood: Any
    row: Any
    n_distinct: Any
    ppp: Any
    at_edge: Any = 0.0


def certificate(quality: Quality, drawn: Drawn, thresholds: Thresholds, sampler: int) -> Posterior:
    """Judge a sample and put its posterior together; no emulator was evaluated for it.

    Args:
        quality: of the weights.
        drawn: the draws returned.
        thresholds: what a certified posterior satisfies.
        sampler: identifier.
    """
    n_draws = drawn.theta.shape[0]
    certified = (
        (quality.ess >= thresholds.ess_min)
        & (quality.max_weight <= thresholds.max_weight)
        & (quality.pareto_k <= thresholds.pareto_k_max)
        & (quality.log_evidence_error <= thresholds.evidence_error_max)
        & (drawn.at_edge <= _MAX_AT_EDGE)
        & (drawn.n_distinct >= min(thresholds.distinct_min, n_draws // 2))
    )
    broken = ~jnp.all(jnp.isfinite(drawn.theta)) | ~jnp.isfinite(quality.log_evidence)
    status = jnp.where(drawn.ppp < POOR_FIT_PPP, Status.POOR_FIT.value, Status.OK.value)
    status = jnp.where(certified, status, Status.NOT_CONVERGED.value)
    status = jnp.where(broken, Status.NUMERICAL_FAILURE.value, status)
    blank = lambda x: jnp.where(broken, jnp.nan, x)  # noqa: E731
    return Posterior(
        theta=blank(drawn.theta),
        log_prior=blank(drawn.log_prior),
        log_likelihood=blank(drawn.log_likelihood),
        ess=blank(quality.ess),
        pareto_k=blank(quality.pareto_k),
        rhat=jnp.full((), jnp.nan),
        ppp=blank(drawn.ppp),
        log_evidence=blank(quality.log_evidence),
        log_evidence_error=blank(quality.log_evidence_error),
        max_weight=blank(quality.max_weight),
        n_distinct=drawn.n_distinct.astype(jnp.int32),
        pool_row=jnp.where(broken, -1, drawn.row),
        acceptance=jnp.full((), jnp.nan),
        n_evaluations=jnp.zeros((), jnp.int32),
        status=status.astype(jnp.int32),
        sampler=jnp.full((), sampler, jnp.int32),
    )


def predictive_p(likelihood: Likelihood, table, flux, fractional_variance, photometry):
    """Posterior-predictive p of the observed bands, (); 1 if no band is observed.

    Args:
        likelihood: noise model.
        table: from `discrepancy_table`.
        flux: (band, draw) emulator fluxes [nanomaggies].
        fractional_variance: (band, draw) error floor and emulator, in squared fluxes.
        photometry: of one galaxy.
    """
    observed = photometry.state == BandState.OBSERVED
    wide = lambda x: jnp.broadcast_to(x[:, None], flux.shape)  # noqa: E731
    predicted = flux * wide(likelihood.zero_points)
    variance = wide(photometry.flux_err) ** 2 + fractional_variance * predicted**2
    residual = (wide(photometry.flux) - predicted) / jnp.sqrt(variance)
    found = jnp.sum(jnp.where(wide(observed), likelihood.discrepancy(residual), 0.0), axis=0)
    return jnp.mean(table_p(table, found, jnp.sum(observed)))
