"""Cost of a pass over stored fluxes against a pass through a network of realistic size.

As tests the sizes are tiny; `POPCOSMOS_BENCHMARK=full pytest benchmarks` times the real ones.
"""

import os
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.inference.start import build_pool, pool_log_likelihood
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import AnalyticPrior
from popcosmos_hpc.parameters import pop_cosmos
from popcosmos_hpc.photometry import BandState, Photometry

FULL = os.environ.get("POPCOSMOS_BENCHMARK") == "full"
N_POOL = 131072 if FULL else 4096
N_BATCH = 512 if FULL else 64
N_BANDS = 10


class RandomNetwork(AbstractEmulator):
    """Magnitudes per unit mass from four hidden layers of 256 units with random weights."""

    weights: list[jax.Array]
    bands: tuple[str, ...] = eqx.field(static=True)
    redshift_range: tuple[float, float] = eqx.field(static=True, default=(0.0, 2.0))
    derived_names: tuple[str, ...] = eqx.field(static=True, default=())
    derived_units: tuple[str, ...] = eqx.field(static=True, default=())

    def __call__(self, theta):
        hidden = theta[1:]
        for weight in self.weights[:-1]:
            hidden = jax.nn.swish(hidden @ weight)
        return 10.0 ** (0.4 * (22.5 - theta[0] - hidden @ self.weights[-1]))

    def sigma(self, redshift):
        return jnp.full(len(self.bands), 0.01)

    def select(self, bands):
        raise NotImplementedError

    def derived(self, theta):
        return jnp.zeros(0)


@pytest.fixture(scope="module")
def model():
    random = np.random.default_rng(0)
    sizes = (15, 256, 256, 256, 256, N_BANDS)
    weights = [
        jnp.asarray(random.normal(size=shape) / np.sqrt(shape[0]), jnp.float32) for shape in pairwise(sizes)
    ]
    network = RandomNetwork(weights, tuple(f"band{index}" for index in range(N_BANDS)))
    return GalaxyModel(network, Likelihood(np.ones(N_BANDS), 0.03), AnalyticPrior(pop_cosmos(2.0)))


@pytest.fixture(scope="module")
def galaxy():
    unknown = jnp.float32(jnp.nan)
    state = jnp.full(N_BANDS, BandState.OBSERVED, jnp.int8)
    return Photometry(jnp.ones(N_BANDS), jnp.full(N_BANDS, 0.1), state, unknown, unknown)


def test_pool_pass(benchmark, model, galaxy):
    pool = eqx.filter_jit(build_pool)(jax.random.PRNGKey(0), model, N_POOL, 4)
    run = eqx.filter_jit(pool_log_likelihood)
    values = benchmark(lambda: jax.block_until_ready(run(model, pool, galaxy)))
    assert values.shape == (4, N_POOL // 4) and np.all(np.isfinite(values))
    benchmark.extra_info["draws"] = N_POOL


def test_network_pass(benchmark, model, galaxy):
    u = jax.vmap(model.prior.sample_base)(jax.random.split(jax.random.PRNGKey(0), N_BATCH))
    run = eqx.filter_jit(lambda model, u, galaxy: jax.vmap(lambda x: model.log_target(x, galaxy))(u))
    values = benchmark(lambda: jax.block_until_ready(run(model, u, galaxy)))
    assert values.shape == (N_BATCH,) and np.all(np.isfinite(values))
    benchmark.extra_info["draws"] = N_BATCH


def test_stored_fluxes_are_far_cheaper_than_the_network(model, galaxy):
    """Per draw, the pass over the pool must cost less than a twentieth of an evaluation."""
    from time import perf_counter

    def best(function):
        times = []
        for _ in range(7):
            start = perf_counter()
            jax.block_until_ready(function())
            times.append(perf_counter() - start)
        return min(times)

    pool = eqx.filter_jit(build_pool)(jax.random.PRNGKey(0), model, 32768, 4)
    stored = eqx.filter_jit(pool_log_likelihood)
    u = pool.u[0, :2048]
    network = eqx.filter_jit(lambda model, u, galaxy: jax.vmap(lambda x: model.log_target(x, galaxy))(u))
    per_stored = best(lambda: stored(model, pool, galaxy)) / 32768
    per_evaluation = best(lambda: network(model, u, galaxy)) / 2048
    assert per_stored < 0.05 * per_evaluation
