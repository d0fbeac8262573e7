"""Two-stage importance sampling, against the exact answers of the toy world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.exhaustive import ExhaustivePool
from popcosmos_hpc.inference.pool import (
    PoolSampler,
    pick_rows,
    pool_on_device,
    pool_tables,
    systematic_tiles,
    theta_of_rows,
    weigh_rows,
)
from popcosmos_hpc.photometry import Photometry
from tests import toy, toy_pool

N_GALAXIES = 300


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def pool():
    return pool_on_device(toy_pool.store())


@pytest.fixture(scope="module")
def galaxies():
    return toy.toy_photometry(N_GALAXIES, seed=5, missing=0.2)[1]


@pytest.fixture(scope="module")
def fits(model, pool, galaxies):
    sampler = PoolSampler(pool, n_picks=8192)
    return fit_galaxies(sampler, model, galaxies, np.arange(N_GALAXIES), seed=1, draws=1000)


@pytest.fixture(scope="module")
def answers(galaxies):
    return [toy.exact(Photometry(*(x[i] for x in galaxies))) for i in range(N_GALAXIES)]


def test_most_galaxies_are_certified(fits):
    assert np.mean(fits.status == Status.OK) > 0.7
    assert set(fits.status) <= {Status.OK, Status.NOT_CONVERGED, Status.POOR_FIT}


def test_errors_are_those_that_the_certificate_states(fits, answers):
    """Rms error of means times sqrt(ESS), over certified galaxies; the draws returned add their own error.

    The pool is shared, so errors are correlated between galaxies: the tolerance is not that of 1500 numbers.
    """
    good = np.flatnonzero(fits.status == Status.OK)
    scaled = []
    for i in good:
        sd = np.sqrt(np.diag(answers[i].covariance))
        size = 1.0 / (1.0 / fits.ess[i] + 1.0 / fits.theta.shape[1])
        scaled.append((fits.theta[i].mean(0) - answers[i].mean) / sd * np.sqrt(size))
    assert 0.7 < np.sqrt(np.mean(np.square(scaled))) < 1.2
    width = [np.std(fits.theta[i], axis=0) / np.sqrt(np.diag(answers[i].covariance)) for i in good]
    np.testing.assert_allclose(np.mean(width, axis=0), 1.0, atol=0.03)


def test_every_draw_is_one_from_the_whole_posterior(fits, answers):
    """Rows of a pool lie in the order of tiles; draws must not. Standard normal pulls, more than 200."""
    good = np.flatnonzero(fits.status == Status.OK)
    for draw in (0, 1, -1):
        pulls = [
            (fits.theta[i, draw] - answers[i].mean) / np.sqrt(np.diag(answers[i].covariance)) for i in good
        ]
        assert np.abs(np.mean(pulls, axis=0)).max() < 4 / np.sqrt(len(good))
        np.testing.assert_allclose(np.std(pulls, axis=0), 1.0, atol=4 / np.sqrt(2 * len(good)))


def test_the_evidence_is_unbiased_and_its_error_is_stated(fits, answers):
    """Mean of Z / Z_exact against one, and ln Z in units of its stated error and of 1 / sqrt(ESS)."""
    exact = np.array([answer.log_evidence for answer in answers])
    ratio = np.exp(fits.log_evidence - exact)
    well = fits.ess > 50
    assert abs(ratio[well].mean() - 1.0) < 0.02  # rms 1 / sqrt(ESS) ~ 0.07 / sqrt(250), shared pool 0.01
    pull = (fits.log_evidence - exact)[well]
    assert 0.7 < np.sqrt(np.mean(pull**2 * fits.ess[well])) < 1.3
    assert 0.7 < np.sqrt(np.mean((pull / fits.log_evidence_error[well]) ** 2)) < 1.3


def test_a_galaxy_outside_the_pool_is_not_certified(model, pool, galaxies):
    far = galaxies._replace(flux=galaxies.flux + np.float32(40.0))
    fitted = fit_galaxies(
        PoolSampler(pool, n_picks=8192), model, far, np.arange(N_GALAXIES), seed=1, draws=1000
    )
    assert not np.any(fitted.status == Status.OK)


def test_picked_rows_estimate_the_sum_over_the_whole_pool(model, pool, galaxies):
    """The estimate of the sum of likelihoods, averaged over keys, against the sum itself."""
    tables = pool_tables(model, pool, jax.random.PRNGKey(0))
    one = Photometry(*(jnp.asarray(x[0]) for x in galaxies))
    one = one._replace(flux=jnp.nan_to_num(one.flux))
    log_likelihood, _ = weigh_rows(model, pool, tables, one, jnp.arange(len(pool.draw)))
    whole = np.exp(np.float64(log_likelihood)).sum()
    worth = jnp.zeros(len(pool.start) - 1)  # tiles all alike: a bad proposal is unbiased too

    def estimate(key):
        picks = pick_rows(key, pool, worth, 4096, 0.5)
        return jnp.mean(jnp.exp(weigh_rows(model, pool, tables, one, picks.row)[0] + picks.log_inverse))

    found = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.PRNGKey(1), 64)))
    assert abs(found.mean() - whole) < 4 * found.std() / 8
    assert found.std() < 0.5 * whole


def test_tiles_are_picked_as_often_as_their_probability_says():
    random = np.random.default_rng(0)
    for n_tiles in (1, 7, 256, 1000):
        probability = random.gamma(0.3, size=n_tiles).astype(np.float32)
        tile = np.asarray(systematic_tiles(jax.random.PRNGKey(2), jnp.asarray(probability), 5000))
        expected = 5000 * probability / probability.sum()
        found = np.bincount(tile, minlength=n_tiles)
        assert np.all(np.diff(tile) >= 0)
        assert np.abs(found - expected).max() < 1.1


def test_stored_parameters_reproduce_the_stored_fluxes(model, pool):
    """A pool's draw is the rounded one: only float16 stands between its parameters and its fluxes."""
    row = jnp.arange(0, len(pool.draw), 997)
    flux = np.asarray(jax.vmap(model.emulator)(theta_of_rows(pool, row)))
    stored = np.asarray(pool.rows[row][:, :-2]).view(np.float16).astype(np.float32)
    np.testing.assert_allclose(stored, flux, rtol=2**-10, atol=1e-4)


def test_draws_follow_the_prior(model, pool):
    theta = np.asarray(theta_of_rows(pool, jnp.arange(0, len(pool.draw), 11)))
    prior = model.prior
    covariance = np.asarray(prior.cholesky @ prior.cholesky.T)
    normal = (theta - np.asarray(prior.mean)) / np.sqrt(np.diag(covariance))
    for column in normal.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.cov(theta.T), covariance, atol=0.03)


def test_a_galaxy_depends_on_nothing_but_its_identifier(model, pool, galaxies, fits):
    sampler, ids = PoolSampler(pool, n_picks=8192), np.arange(N_GALAXIES)
    company = np.array([290, 3, 77])
    few = Photometry(*(x[company] for x in galaxies))
    again = fit_galaxies(sampler, model, few, ids[company], seed=1, batch_size=5, draws=1000)
    for name in fits._fields:
        np.testing.assert_array_equal(getattr(fits, name)[company], getattr(again, name), err_msg=name)


def test_all_rows_give_what_picks_estimate(model, pool, galaxies, fits):
    """The exhaustive pass: its evidence is the mean over all rows, and picks agree within their own error."""
    n = 24
    few = Photometry(*(x[:n] for x in galaxies))
    whole = fit_galaxies(ExhaustivePool(pool), model, few, np.arange(n), seed=1, batch_size=4, draws=1000)
    tables = pool_tables(model, pool, jax.random.PRNGKey(0))
    one = Photometry(*(jnp.asarray(np.nan_to_num(x[0])) for x in galaxies))
    one = one._replace(redshift=jnp.asarray(np.nan), redshift_err=jnp.asarray(np.nan))
    log_likelihood = weigh_rows(model, pool, tables, one, jnp.arange(pool.draw.shape[0]))[0]
    exact = jax.scipy.special.logsumexp(log_likelihood) - pool.log_n_drawn
    assert whole.log_evidence[0] == pytest.approx(float(exact), abs=2e-3)
    good = (whole.status == Status.OK) & (fits.status[:n] == Status.OK)
    assert good.sum() >= 12
    # The pool is the same, so only the picking differs: its part of 1 / ESS.
    of_picks = 1.0 / np.maximum(1.0 / fits.ess[:n] - 1.0 / whole.ess, 1e-5)
    pull = (fits.log_evidence[:n] - whole.log_evidence)[good] * np.sqrt(of_picks[good])
    assert np.sqrt(np.mean(pull**2)) < 1.5
    shift = (fits.theta[:n].mean(1) - whole.theta.mean(1)) / whole.theta.std(1)
    error = np.sqrt(1.0 / of_picks + 2.0 / 1000)[:, None]
    assert np.sqrt(np.mean((shift / error)[good] ** 2)) < 1.5


def test_posteriors_that_reach_a_limit_are_not_certified(model, pool, galaxies, fits):
    """A limit in the middle of a galaxy's posterior: what lies beyond is missing, so it must climb."""
    good = int(np.flatnonzero(fits.status == Status.OK)[0])
    one = Photometry(*(x[good : good + 1] for x in galaxies))
    fluxes = jax.lax.bitcast_convert_type(pool.rows[:, 0][fits.pool_row[good]], jnp.float16)
    for factor, certified in ((0.1, True), (1.0, False)):
        edge = factor * float(np.median(fluxes))
        limited = pool._replace(limit=jnp.zeros_like(pool.limit).at[0].set(edge))
        fitted = fit_galaxies(PoolSampler(limited, n_picks=8192), model, one, np.array([good]), seed=1)
        assert (fitted.status[0] == Status.OK) == certified
