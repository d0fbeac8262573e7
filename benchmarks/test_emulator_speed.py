"""Cost of a galaxy's photometry by direct synthesis at R = 1000 and by the shipped emulators.

As tests the batches are small; `python -m benchmarks.emulator_speed` times both with care.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.emulator_speed import best, prepare
from popcosmos_hpc.model.bundle import shipped_bundles

N_GALAXIES = 32


@pytest.fixture(scope="module", params=shipped_bundles()[:1])
def contest(request):
    return prepare(request.param)


@pytest.mark.parametrize("which", ["synthesis", "emulator"])
def test_photometry(benchmark, contest, which):
    function, theta = getattr(contest, which), jnp.asarray(contest.theta[:N_GALAXIES])
    jax.block_until_ready(function(theta))
    fluxes = benchmark.pedantic(lambda: jax.block_until_ready(function(theta)), rounds=5)
    assert fluxes.shape[0] == N_GALAXIES and np.all(np.isfinite(fluxes))
    benchmark.extra_info |= {"galaxies": N_GALAXIES, "grids": contest.grids, "pixels": contest.n_pixels}


def test_emulator_is_twenty_times_faster_than_the_synthesis(contest):
    slow = best(contest.synthesis, contest.theta, (N_GALAXIES,), repeats=5)
    fast = best(contest.emulator, contest.theta, (128, 1024), repeats=5)
    assert slow > 20 * fast, f"synthesis {1e6 * slow:.0f} us, emulator {1e6 * fast:.1f} us per galaxy"
