"""What every sampler must satisfy, on the toy world whose answers are exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.sampler import SAMPLERS, Posterior, build_sampler
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import BandState, Photometry
from tests import toy

SETTINGS = {
    "smc": {"n_particles": 64, "n_pool": 8192, "n_moves": 12},
    "ensemble": {"n_walkers": 32, "n_pool": 8192, "n_warmup": 200, "n_samples": 400, "n_kept": 10},
    "nuts": {"n_chains": 4, "n_pool": 8192, "n_warmup": 100, "n_samples": 140, "max_tree_depth": 5},
}
DRAWS = 200
N_GALAXIES = 24


@pytest.fixture(scope="module", params=sorted(SAMPLERS))
def sampler(request):
    return build_sampler(request.param, **SETTINGS[request.param])


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def galaxies():
    """Galaxies with gaps, some with a known redshift."""
    _, photometry = toy.toy_photometry(N_GALAXIES, seed=2, missing=0.25)
    theta, _ = toy.toy_photometry(N_GALAXIES, seed=2, missing=0.25)
    known = np.arange(N_GALAXIES) % 4 == 0
    redshift = np.where(known, theta[:, -1], np.nan).astype(np.float32)
    return photometry._replace(
        redshift=redshift, redshift_err=np.where(known, 0.05, np.nan).astype(np.float32)
    )


@pytest.fixture(scope="module")
def fits(sampler, model, galaxies):
    return fit_galaxies(sampler, model, galaxies, np.arange(N_GALAXIES), seed=1, batch_size=8, draws=DRAWS)


def answers(galaxies):
    return [toy.exact(Photometry(*(x[i] for x in galaxies))) for i in range(N_GALAXIES)]


def test_finds_the_exact_posterior(fits, galaxies):
    """Errors of means in units of their own Monte Carlo error; widths; correlations."""
    pulls, widths, targets = [], [], []
    for index, answer in enumerate(answers(galaxies)):
        sd = np.sqrt(np.diag(answer.covariance))
        size = min(float(fits.ess[index]), DRAWS)
        pulls.append((fits.theta[index].mean(0) - answer.mean) / sd * np.sqrt(size))
        widths.append(np.cov(fits.theta[index].T) / np.outer(sd, sd))
        targets.append(answer.covariance / np.outer(sd, sd))
    pulls = np.array(pulls)
    assert np.sqrt(np.mean(pulls**2)) < 1.35
    assert np.abs(pulls).max() < 5.0
    target = np.mean(
        [a.covariance / np.outer(*[np.sqrt(np.diag(a.covariance))] * 2) for a in answers(galaxies)], 0
    )
    np.testing.assert_allclose(np.mean(widths, 0), target, atol=0.06)


def test_evidence_is_exact_where_there_is_one(fits, galaxies):
    if np.all(np.isnan(fits.log_evidence)):
        return
    error = fits.log_evidence - [answer.log_evidence for answer in answers(galaxies)]
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(N_GALAXIES) + 0.01
    assert np.abs(error).max() < 0.6


def test_certificate_is_complete(fits, sampler):
    assert isinstance(fits, Posterior)
    assert fits.theta.shape == (N_GALAXIES, DRAWS, toy.SPACE.size) and fits.theta.dtype == np.float32
    np.testing.assert_array_equal(fits.status, Status.OK)
    np.testing.assert_array_equal(fits.sampler, sampler.identifier)
    assert np.all(fits.rhat < 1.1) and np.all(fits.ess >= sampler.ess_min)
    assert np.all((fits.ppp > 0.0) & (fits.ppp <= 1.0))
    assert np.all((fits.acceptance > 0.05) & (fits.acceptance < 0.99))
    assert np.all(fits.n_evaluations > 0)
    assert np.all(np.isfinite(fits.log_prior)) and np.all(np.isfinite(fits.log_likelihood))


def test_draws_carry_their_own_densities(fits, model, galaxies):
    root, mean = toy.arrays()["cholesky"], toy.arrays()["mean"]
    u = np.linalg.solve(root, (fits.theta[0, :20] - mean).T).T
    one = Photometry(*(jnp.asarray(x[0]) for x in galaxies))
    density = jax.vmap(lambda u: (model.log_prior(u), model.log_likelihood(u, one)))(jnp.asarray(u))
    np.testing.assert_allclose(fits.log_prior[0, :20], density[0], atol=1e-3)
    np.testing.assert_allclose(fits.log_likelihood[0, :20], density[1], atol=5e-3)


def test_the_loop_of_one_galaxy_equals_the_batch(sampler, model, galaxies, fits):
    from popcosmos_hpc.inference.batch import _shared, galaxy_keys

    one = Photometry(*(jnp.asarray(x[0]) for x in galaxies))
    one = one._replace(flux=jnp.nan_to_num(one.flux))
    key = jnp.asarray(galaxy_keys(1, np.arange(1))[0])
    alone = eqx.filter_jit(lambda *args: sampler(*args, draws=DRAWS))(
        key, one, model, _shared(sampler, model, 1)
    )
    assert float(alone.rhat) == pytest.approx(float(fits.rhat[0]), abs=0.05)
    assert alone.status == Status.OK


def test_limits_pull_the_posterior_below_them(sampler, model):
    """A limit far below what the other bands suggest must lower the band's predicted flux."""
    _, photometry = toy.toy_photometry(2, seed=7)
    flux, state = photometry.flux.copy(), photometry.state.copy()
    flux[1], state[1, 3] = flux[0], BandState.LIMIT
    flux[1, 3] = flux[0, 3] - 3.0
    limited = photometry._replace(flux=flux, state=state)
    fit = fit_galaxies(sampler, model, limited, np.arange(2), seed=1, batch_size=8, draws=DRAWS)
    predicted = np.asarray(jax.vmap(jax.vmap(model.predict))(jnp.asarray(fit.theta)))[..., 3]
    assert predicted[1].mean() < predicted[0].mean() - 1.0


class Fragile(GalaxyModel):
    """The toy world, broken for galaxies whose known redshift is high."""

    def log_likelihood_of_moments(self, predicted, model_variance, redshift, photometry):
        value = super().log_likelihood_of_moments(predicted, model_variance, redshift, photometry)
        return jnp.where(photometry.redshift > 2.2, jnp.nan, value)


def test_a_galaxy_with_non_finite_numbers_fails_alone(sampler, model, galaxies):
    fragile = Fragile(model.emulator, model.likelihood, model.prior)
    broken = galaxies.redshift.copy()
    broken[:] = np.nan
    broken[1] = 2.5
    widths = np.where(np.isfinite(broken), 0.1, np.nan).astype(np.float32)
    damaged = galaxies._replace(redshift=broken, redshift_err=widths)
    rows = slice(0, 4)
    fit = fit_galaxies(
        sampler, fragile, Photometry(*(x[rows] for x in damaged)), np.arange(4), 1, batch_size=8, draws=20
    )
    assert fit.status[1] == Status.NUMERICAL_FAILURE
    assert np.all(np.isnan(fit.theta[1])) and np.isnan(fit.ess[1])
    others = np.array([0, 2, 3])
    alone = fit_galaxies(
        sampler, fragile, Photometry(*(x[others] for x in damaged)), others, 1, batch_size=8, draws=20
    )
    np.testing.assert_array_equal(fit.theta[others], alone.theta)
    np.testing.assert_array_equal(fit.status[others], Status.OK)


def simulation_based_calibration(sampler, n_mocks):
    """p-value per parameter of the ranks of the truth among the draws (Talts et al. 2018)."""
    model = toy.toy_model("student_t", 0.05)
    state = jnp.asarray([1, 1, 1, 2, 1, 2], jnp.int8)
    errors = jnp.asarray(toy.ERRORS, jnp.float32).at[3].set(4.0)
    simulate = jax.jit(jax.vmap(lambda key: model.simulate(key, errors, state)))
    theta, photometry = jax.device_get(simulate(jax.random.split(jax.random.PRNGKey(11), n_mocks)))
    assert 0.1 < np.mean(photometry.state[:, 3] == BandState.LIMIT) < 0.9
    fit = fit_galaxies(sampler, model, photometry, np.arange(n_mocks), seed=5, draws=39)
    assert np.mean(fit.status == Status.OK) > 0.97
    ranks = np.sum(fit.theta < theta[:, None], axis=1)
    counts = [np.bincount(column // 4, minlength=10) for column in ranks.T]
    return np.array([stats.chisquare(count).pvalue for count in counts])


def test_calibration_on_simulations():
    """512 mocks with Student-t noise, an error floor and censored bands."""
    p = simulation_based_calibration(build_sampler("smc", n_particles=48, n_pool=8192, n_moves=12), 512)
    assert np.all(p > 0.01 / toy.SPACE.size), p


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_calibration_on_many_simulations(name):
    p = simulation_based_calibration(build_sampler(name, **SETTINGS[name]), 2000)
    assert np.all(p > 0.01 / toy.SPACE.size), p
