"""Sampling from a pool: the product form of the likelihood against the plain one, and cost against pool size.

As tests the sizes are tiny; `POPCOSMOS_BENCHMARK=full pytest benchmarks` times the real ones.
"""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.inference.pool import Pool, PoolSampler
from popcosmos_hpc.model.emulator import LinearEmulator
from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import GaussianPrior
from popcosmos_hpc.parameters import pop_cosmos
from popcosmos_hpc.photometry import BandState, Photometry

FULL = os.environ.get("POPCOSMOS_BENCHMARK") == "full"
N_BANDS, N_TILES = 9, 32768 if FULL else 256
N_ROWS = (1_000_000, 10_000_000, 100_000_000) if FULL else (4096, 16384)
N_PICKS = 16384 if FULL else 1024


def galaxy() -> Photometry:
    flux = np.geomspace(1.0, 20.0, N_BANDS).astype(np.float32)
    state, unknown = np.full(N_BANDS, BandState.OBSERVED.value, np.int8), jnp.float32(np.nan)
    return Photometry(jnp.asarray(flux), jnp.asarray(0.05 * flux), jnp.asarray(state), unknown, unknown)


def synthetic_pool(n_rows: int) -> Pool:
    """Rows around the galaxy's colours, the brightness of their tiles spread over five magnitudes."""
    random = np.random.default_rng(0)
    per_tile = n_rows // N_TILES
    tile = np.sort(random.lognormal(0.0, 1.5, (N_TILES, 1)), axis=0) * np.geomspace(1.0, 20.0, N_BANDS)
    rows = np.empty((n_rows, N_BANDS + 2), np.uint16)
    for first in range(0, n_rows, 1 << 22):
        stop = min(first + (1 << 22), n_rows)
        index = np.minimum(np.arange(first, stop) // per_tile, N_TILES - 1)
        jitter = random.normal(1.0, 0.03, (stop - first, 1)).astype(np.float32)
        rows[first:stop, :-2] = (tile[index] * jitter).astype(np.float16).view(np.uint16)
        rows[first:stop, -2:] = random.integers(0, 65536, (stop - first, 2))
    start = np.minimum(np.arange(N_TILES + 1) * per_tile, n_rows)
    start[-1] = n_rows
    size = pop_cosmos().size
    return Pool(
        jnp.asarray(rows),
        jnp.zeros((n_rows, size), jnp.uint16),
        jnp.arange(n_rows, dtype=jnp.uint32),
        jnp.asarray(start.astype(np.int32)),
        jnp.asarray(tile.T, jnp.float32),
        jnp.asarray((0.03 * tile.T) ** 2, jnp.float32),
        jnp.ones((2, N_TILES)),
        jnp.ones((2, N_TILES)),
        jnp.zeros(size),
        jnp.full(size, 1e-4),
        jnp.zeros(len(tile[0])),
        jnp.log(jnp.float32(n_rows)),
        jax.random.PRNGKey(0),
    )


def model() -> GalaxyModel:
    space = pop_cosmos()
    emulator = LinearEmulator(
        np.zeros((N_BANDS, space.size)), np.ones(N_BANDS), [str(i) for i in range(N_BANDS)]
    )
    prior = GaussianPrior(space, np.zeros(space.size), np.eye(space.size))
    return GalaxyModel(emulator, Likelihood(np.ones(N_BANDS), 0.03), prior)


@pytest.mark.parametrize("form", ["plain", "product"])
@pytest.mark.benchmark(group="likelihood of stored fluxes")
def test_likelihood_form(benchmark, form):
    """The ratio of the two is the gain of the product form; both see the same fluxes."""
    likelihood, photometry = Likelihood(np.ones(N_BANDS), 0.03), galaxy()
    random = np.random.default_rng(1)
    scatter = random.lognormal(0.0, 1.0, (N_BANDS, N_TILES))
    flux = jnp.asarray(np.asarray(photometry.flux)[:, None] * scatter, jnp.float32)
    variance = jnp.full(flux.shape, 0.03**2)
    one = lambda f: likelihood.log_prob(f, jnp.zeros(N_BANDS), photometry)  # noqa: E731
    plain = jax.jit(lambda flux, variance: jax.vmap(one, 1)(flux))
    product = jax.jit(lambda flux, variance: log_prob_of_fluxes(likelihood, flux, variance, photometry))
    function = plain if form == "plain" else product
    expected = np.asarray(plain(flux, variance))
    found = benchmark(lambda: jax.block_until_ready(function(flux, variance)))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=5e-3)


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.benchmark(group="a galaxy from a pool")
def test_cost_does_not_depend_on_the_size_of_the_pool(benchmark, n_rows):
    sampler, galaxy_model, photometry = (
        PoolSampler(synthetic_pool(n_rows), n_picks=N_PICKS),
        model(),
        galaxy(),
    )
    tables = eqx.filter_jit(sampler.prepare)(galaxy_model, jax.random.PRNGKey(1))

    @eqx.filter_jit
    def fit(sampler, tables, key):
        state = sampler.init(key, photometry, galaxy_model, tables)
        return sampler.step(state, photometry, galaxy_model, tables).draws

    keys = iter(jax.random.split(jax.random.PRNGKey(2), 100_000))
    draws = benchmark(lambda: jax.block_until_ready(fit(sampler, tables, next(keys))))
    assert np.isfinite(np.asarray(draws.log_weight)).all()
