"""Errors of stacks, on the toy world, where the stack of exact posteriors is known."""

import jax
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
from popcosmos_hpc.inference.stack import stack_histogram
from popcosmos_hpc.photometry import Photometry
from tests import toy, toy_pool

EDGES = np.linspace(0.9, 2.1, 9)


def exact_stack(galaxies: Photometry) -> np.ndarray:
    """Mean over galaxies of the exact probability of each bin."""
    n = len(galaxies.flux)
    total = np.zeros(len(EDGES) - 1)
    for i in range(n):
        answer = toy.exact(Photometry(*(x[i] for x in galaxies)))
        total += np.diff(stats.norm.cdf(EDGES, answer.mean[-1], np.sqrt(answer.covariance[-1, -1])))
    return total / n


def pulls(tmp_path, n_galaxies: int, n_pools: int, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Error of the stack over its stated error, (pool, bin): of the jack-knife, and of independence."""
    galaxies, model = toy.toy_photometry(n_galaxies, seed=12)[1], toy.toy_model()
    galaxies = galaxies._replace(flux_err=6 * galaxies.flux_err)  # broad posteriors: many share each draw
    exact, found = exact_stack(galaxies), []
    for seed in range(n_pools):
        config = toy_pool.settings(seed=100 + seed, n_draws=n_draws, n_tiles=256)
        pool = pool_on_device(build_survey_pool(config, tmp_path / f"pool{seed}"))
        fit = fit_galaxies(PoolSampler(pool, n_picks=2048), model, galaxies, np.arange(n_galaxies), 1)
        sub_pool = np.asarray(pool.draw)[fit.pool_row] % 16
        stack = stack_histogram(fit.theta[..., -1], sub_pool, EDGES, fit.ess)
        found.append(
            [(stack.density - exact) / stack.error, (stack.density - exact) / stack.independent_error]
        )
        jax.clear_caches()
    both = np.array(found)
    return both[:, 0], both[:, 1]


def test_the_jackknife_covers_and_independence_does_not(tmp_path):
    """Eight pools and eight bins: 64 pulls, of which neighbours in a pool are correlated.

    A chi-square of about 30 effective numbers has a relative scatter of sqrt(2 / 30): rms within 0.7 and 1.4
    at two standard errors, the jack-knife's own noise of 18 % included.
    """
    jackknife, independent = pulls(tmp_path, n_galaxies=400, n_pools=8, n_draws=4096)
    assert 0.7 < np.sqrt(np.mean(jackknife**2)) < 1.4
    assert np.mean(np.abs(jackknife) < 1) == pytest.approx(0.68, abs=0.2)
    assert np.sqrt(np.mean(independent**2)) > 1.7


def test_densities_are_probabilities():
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 40))
    stack = stack_histogram(
        values, random.integers(0, 16, (50, 40)), np.linspace(-1, 1, 5), np.full(50, 40.0)
    )
    expected = np.diff(stats.norm.cdf(np.linspace(-1, 1, 5)))
    np.testing.assert_allclose(stack.density, expected, atol=4 * np.sqrt(0.25 / 2000))
    assert stack.n_galaxies == 50


def test_galaxies_without_draws_are_left_out_and_draws_from_no_pool_have_no_jackknife():
    values = np.zeros((3, 10))
    values[1] = np.nan
    stack = stack_histogram(values, np.full((3, 10), -1), np.array([-1.0, 1.0]), np.full(3, 10.0))
    assert stack.n_galaxies == 2 and stack.density[0] == 1.0 and np.isnan(stack.error[0])
    empty = stack_histogram(values[1:2], np.full((1, 10), -1), np.array([-1.0, 1.0]), np.ones(1))
    assert empty.n_galaxies == 0 and np.isnan(empty.density[0])
