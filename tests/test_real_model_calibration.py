"""Simulation-based calibration of the whole real model: analytic prior, shipped emulator, SMC.

Minutes to hours of computing, hence slow. `POPCOSMOS_SBC_MOCKS` sets the number of mocks,
`POPCOSMOS_SBC_OUT` a file for the ranks.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.sampler import build_sampler
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood

N_MOCKS = int(os.environ.get("POPCOSMOS_SBC_MOCKS", "200"))
DRAWS, BINS = 39, 5
DEPTH = 26.5  # 5-sigma AB magnitude: deep enough that most galaxies of the prior are seen, some not
FLUX_ERROR = 10 ** (0.4 * (22.5 - DEPTH)) / 5


def mocks_and_fits(name):
    """True parameters (galaxy, param), and the posteriors of the mocks."""
    bundle = load_bundle(name)
    likelihood = Likelihood(np.ones(len(bundle.bands)), 0.03, "student_t")
    model = GalaxyModel(bundle.emulator(), likelihood, bundle.prior("analytic"))
    errors = jnp.full(len(bundle.bands), FLUX_ERROR, jnp.float32)
    state = jnp.ones(len(bundle.bands), jnp.int8)
    simulate = jax.jit(jax.vmap(lambda key: model.simulate(key, errors, state)))
    theta, photometry = jax.device_get(simulate(jax.random.split(jax.random.PRNGKey(31), N_MOCKS)))
    seen = np.mean(photometry.flux.max(axis=1) > 5 * FLUX_ERROR)
    assert 0.3 < seen < 0.99, f"{seen:.2f} of the mocks are seen: no test of the data's weight"
    sampler = build_sampler("smc")
    return (
        model.space.names,
        theta,
        fit_galaxies(sampler, model, photometry, np.arange(N_MOCKS), 5, 16, draws=DRAWS),
    )


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", ["kids9", "zcosmos"])
def test_ranks_of_the_truth_are_uniform(name):
    names, theta, fit = mocks_and_fits(name)
    ranks = np.sum(fit.theta < theta[:, None], axis=1)
    if "POPCOSMOS_SBC_OUT" in os.environ:
        np.savez(os.environ["POPCOSMOS_SBC_OUT"], names=names, ranks=ranks, status=fit.status, ess=fit.ess)
    assert np.all(np.isfinite(fit.theta))
    assert np.mean(fit.status == Status.OK) > 0.8
    counts = [np.bincount(column * BINS // (DRAWS + 1), minlength=BINS) for column in ranks.T]
    p = {name: stats.chisquare(count).pvalue for name, count in zip(names, counts, strict=True)}
    assert min(p.values()) > 0.01 / len(names), p
