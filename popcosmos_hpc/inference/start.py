"""A pool of prior draws with their photometry, and starts drawn from it.

The photometry of prior draws does not depend on the galaxy: the network runs once per process, and a
galaxy costs one pass of the likelihood over stored fluxes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry

_CHUNK = 4096
_BISECTIONS = 10
_SMALLEST_LOG_BETA = -14.0


class PriorPool(NamedTuple):
    """Draws of `prior.propose_base`, one share per ensemble.

    Attributes:
        u: (ensemble, draw, param) base space.
        log_weight: (ensemble, draw) ln p / q.
        log_prior: (ensemble, draw) ln base density.
        predicted: (band, ensemble, draw) fluxes as the data would show them [nanomaggies].
        variance: (band, ensemble, draw) the model's own variance [nanomaggies^2].
        redshift: (ensemble, draw).
    """

    u: Any
    log_weight: Any
    log_prior: Any
    predicted: Any
    variance: Any
    redshift: Any


def build_pool(key, model: GalaxyModel, n_pool: int, n_ensembles: int) -> PriorPool:
    """Draw the pool and evaluate the emulator on it, in chunks.

    Args:
        key: random key.
        model: the galaxy model.
        n_pool: draws in all; rounded up to fill the shares.
        n_ensembles: number of shares.
    """
    share = -(-n_pool // n_ensembles)

    def draw(key):
        u, log_weight = model.prior.propose_base(key)
        theta = model.theta(u)
        return u, log_weight, model.log_prior(u), *model.moments(theta), model.redshift(theta)

    keys = jax.random.split(key, n_ensembles * share)
    u, log_weight, log_prior, predicted, variance, redshift = jax.lax.map(draw, keys, batch_size=_CHUNK)
    split = lambda x: x.reshape((n_ensembles, share, *x.shape[1:]))  # noqa: E731
    by_band = lambda x: x.T.reshape((-1, n_ensembles, share))  # noqa: E731
    return PriorPool(
        split(u), split(log_weight), split(log_prior), by_band(predicted), by_band(variance), split(redshift)
    )


def pool_log_likelihood(model: GalaxyModel, pool: PriorPool, photometry: Photometry):
    """Ln likelihood of one galaxy for every draw of the pool, (ensemble, draw)."""
    over_draws = jax.vmap(model.log_likelihood_of_moments, (1, 1, 0, None))
    return jax.vmap(over_draws, (1, 1, 0, None))(pool.predicted, pool.variance, pool.redshift, photometry)


def effective_fraction(log_weight, count=None):
    """Effective over nominal number of weighted draws along the last axis.

    Args:
        log_weight: (*batch, draw).
        count: (draw,) draws that each entry stands for; one if None.
    """
    weight = jnp.exp(log_weight - jnp.max(log_weight, axis=-1, keepdims=True))
    if count is None:
        return jnp.sum(weight, -1) ** 2 / jnp.sum(weight**2, -1) / weight.shape[-1]
    return jnp.sum(count * weight, -1) ** 2 / jnp.sum(count * weight**2, -1) / jnp.sum(count)


def apart(photometry: Photometry, work):
    """Result of `work()`, compiled as a program of its own.

    A compiler for CPUs fuses the stages of a long computation into the loops that use them, and evaluates a
    stage again in each: twice the time for sampling from a pool. It cannot look into the branch of a
    condition, so there is one that always holds: a galaxy's flux errors are positive.

    Args:
        photometry: of one galaxy.
        work: no arguments; returns arrays.
    """
    shapes = jax.eval_shape(work)
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
    return jax.lax.cond(photometry.flux_err[0] > 0.0, work, nothing)


def running_sum(values):
    """Cumulative sum of a long vector (n,).

    Many short columns are summed side by side, then their totals: on a CPU five times faster than one long
    sum, and with less rounding.

    Args:
        values: (n,).
    """
    n_columns = 1 << (values.shape[0].bit_length() // 2)
    columns = jnp.pad(values, (0, -values.shape[0] % n_columns)).reshape(n_columns, -1).T
    add = lambda total, row: (total + row, total + row)  # noqa: E731
    total, within = jax.lax.scan(add, jnp.zeros_like(columns[0]), columns)
    offset = jnp.broadcast_to(jnp.cumsum(total) - total, within.shape)
    return (within + offset).T.reshape(-1)[: values.shape[0]]


def systematic_resample(key, log_weight, count: int):
    """Indices of `count` equally weighted draws (systematic resampling)."""
    cumulative = running_sum(jnp.exp(log_weight - jnp.max(log_weight)))
    positions = (jnp.arange(count) + jax.random.uniform(key)) / count * cumulative[-1]
    return jnp.clip(jnp.searchsorted(cumulative, positions, side="right"), 0, log_weight.shape[0] - 1)


def bisect_inverse_temperature(log_weight, log_likelihood, low, fraction, count=None):
    """Largest inverse temperature in (low, 1] that keeps an effective fraction of the draws.

    Args:
        log_weight: (draw,) ln weights at `low`.
        log_likelihood: (draw,).
        low: () present inverse temperature; zero is allowed.
        fraction: effective fraction to keep of draws weighted by `log_weight` + step x log_likelihood.
        count: (draw,) draws that each entry stands for; one if None.
    """
    log_span = jnp.log1p(-low)
    kept = lambda log_step: (  # noqa: E731
        effective_fraction(log_weight + jnp.exp(log_step) * log_likelihood, count) >= fraction
    )

    def halve(bounds, _):
        middle = 0.5 * (bounds[0] + bounds[1])
        enough = kept(log_span + middle)
        return (jnp.where(enough, middle, bounds[0]), jnp.where(enough, bounds[1], middle)), None

    bounds = (jnp.full_like(log_span, _SMALLEST_LOG_BETA), jnp.zeros_like(log_span))
    (found, _), _ = jax.lax.scan(halve, bounds, None, length=_BISECTIONS)
    return jnp.where(kept(log_span), 1.0, jnp.minimum(low + jnp.exp(log_span + found), 1.0))


def shuffled_resample(key, log_weight, count: int):
    """As `systematic_resample`, in random order: any of the draws is then one from the whole posterior."""
    resample_key, order_key = jax.random.split(key)
    return jax.random.permutation(order_key, systematic_resample(resample_key, log_weight, count))


class Start(NamedTuple):
    """Particles resampled from the pool at an inverse temperature, one row per ensemble.

    Attributes:
        u: (ensemble, particle, param).
        log_prior: (ensemble, particle).
        log_likelihood: (ensemble, particle).
        beta: (ensemble,) inverse temperature.
        log_evidence: (ensemble,) ln of the mean of likelihood^beta under the prior.
    """

    u: Any
    log_prior: Any
    log_likelihood: Any
    beta: Any
    log_evidence: Any


def tempered_start(
    key, pool: PriorPool, log_likelihood, n_particles: int, oversampling: float = 2.0
) -> Start:
    """Resample each ensemble's share, at the lowest temperature its effective draws allow.

    Args:
        key: random key.
        pool: the pool.
        log_likelihood: (ensemble, draw) from `pool_log_likelihood`.
        n_particles: particles per ensemble.
        oversampling: effective draws per particle.
    """
    n_draws = log_likelihood.shape[1]
    fraction = min(oversampling * n_particles / n_draws, 0.9)

    def one(key, u, log_weight, log_prior, log_likelihood):
        shift = jnp.max(log_likelihood)
        relative = log_likelihood - shift
        beta = bisect_inverse_temperature(log_weight, relative, jnp.zeros(()), fraction)
        tempered = log_weight + beta * relative
        rows = systematic_resample(key, tempered, n_particles)
        log_evidence = logsumexp(tempered) - jnp.log(n_draws) + beta * shift
        return Start(u[rows], log_prior[rows], log_likelihood[rows], beta, log_evidence)

    keys = jax.random.split(key, log_likelihood.shape[0])
    return jax.vmap(one)(keys, pool.u, pool.log_weight, pool.log_prior, log_likelihood)
