"""N integrated out: the integral, draws of N, and SMC against importance sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate as quadrature
from scipy import stats

from popcosmos_hpc.campaign.mock_draws import draw_galaxies
from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_config import load_pool_config
from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference.amplitude import AmplitudeSampler
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.marginal import MarginalModel, MarginalSMC, integrate
from popcosmos_hpc.inference.pool import pool_on_device
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.model.student_bundle import load_amplitude
from popcosmos_hpc.photometry import Photometry

N_GALAXIES = 16


@pytest.fixture(scope="module")
def model():
    bundle = load_bundle("kids9")
    likelihood = Likelihood(np.ones(len(bundle.bands)), 0.03)
    return GalaxyModel(bundle.emulator(bundle.bands), likelihood, bundle.prior("reference"))


@pytest.fixture(scope="module")
def student():
    return load_amplitude("reference_amplitude", "conditional", "reference")


@pytest.fixture(scope="module")
def drawn(model):
    config = load_pool_config("kids")
    errors = np.array(config.softening(model.bands), np.float32)
    selection = Selection(model.bands, [Condition("r", brighter_than=23.5)])
    mock = MockModel(model, ConstantUncertainty(model.bands, errors), selection, Coverage(model.bands, []))
    return draw_galaxies(mock, 6, np.arange(N_GALAXIES))


@pytest.fixture(scope="module")
def galaxies(drawn):
    unknown = np.full(N_GALAXIES, np.nan, np.float32)
    return Photometry(drawn.flux, drawn.flux_err, drawn.state, unknown, unknown)


def _log_density(model, student, theta, photometry, index):
    """Ln q(N | rest) p(photometry | N, rest) as a function of N, by the model's own likelihood."""
    flux, variance = model.moments(theta)

    @jax.jit
    def one(value):
        gain = 10.0 ** (0.4 * (theta[index] - value))
        found = model.likelihood.log_prob_scaled(gain * flux, gain**2 * variance, photometry)
        return found + student.log_prob(value, theta)

    return one


def test_the_integral_is_that_of_a_fine_grid(model, student, drawn, galaxies):
    """At draws whose colours fit: elsewhere t noise has several best amplitudes, of which one is found."""
    index, found, expected = model.space.index("N"), [], []
    for theta, one in _fitting(drawn, galaxies):
        density = _log_density(model, student, theta, one, index)
        grid = float(theta[index]) + np.linspace(-8.0, 8.0, 40_001)
        log_values = np.asarray(jax.vmap(density)(jnp.asarray(grid, jnp.float32)), np.float64)
        peak = log_values.max()
        expected.append(np.log(quadrature.simpson(np.exp(log_values - peak), x=grid)) + peak)
        variance = model.likelihood.error_floor**2 + model.emulator.sigma(model.redshift(theta)) ** 2
        nodes = integrate(model.likelihood, student, theta, model.emulator(theta), variance, one)
        found.append(float(nodes.log_integral()))
    np.testing.assert_allclose(found, expected, atol=0.02)


def _fitting(drawn, galaxies):
    """Mocks and their true parameters, another N given to them."""
    for i in range(N_GALAXIES):
        theta = jnp.asarray(drawn.theta[i]).at[0].add(1.5)
        yield theta, Photometry(*(jnp.asarray(x[i]) for x in galaxies))


def test_n_follows_its_conditional(model, student, galaxies):
    u = jax.vmap(model.prior.sample_base)(jax.random.split(jax.random.PRNGKey(2), 512))
    marginal, index = MarginalModel(model, student), model.space.index("N")
    one = Photometry(*(jnp.asarray(x[0]) for x in galaxies))
    u = u[jnp.argmax(jax.vmap(lambda u: marginal.log_likelihood(u, one))(u))]
    theta = model.theta(u)
    keys = jax.random.split(jax.random.PRNGKey(4), 4000)
    drawn, log_likelihood = jax.vmap(lambda key: marginal.draw(key, u, one))(keys)
    density = _log_density(model, student, theta, one, index)
    grid = np.linspace(float(drawn[:, index].min()) - 0.5, float(drawn[:, index].max()) + 0.5, 20_001)
    log_values = np.asarray(jax.vmap(density)(jnp.asarray(grid, jnp.float32)), np.float64)
    cumulative = np.cumsum(np.exp(log_values - log_values.max()))
    cdf = lambda x: np.interp(x, grid, cumulative / cumulative[-1])  # noqa: E731
    assert stats.kstest(np.asarray(drawn[:, index]), cdf).pvalue > 1e-3
    rest = np.delete(np.asarray(drawn), index, axis=1)
    np.testing.assert_array_equal(rest, np.broadcast_to(rest[0], rest.shape))
    direct = jax.vmap(lambda value: density(value) - student.log_prob(value, theta))(drawn[:, index])
    np.testing.assert_allclose(log_likelihood, direct, atol=0.02)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    config = load_pool_config("kids").model_copy(update={"n_draws": 65_536, "n_tiles": 4096})
    return pool_on_device(build_survey_pool(config, tmp_path_factory.mktemp("marginal") / "pool"))


@pytest.fixture(scope="module")
def smc(pool, student):
    return MarginalSMC(pool=pool, conditional=student, n_particles=64, n_moves=10, n_picks=8192)


@pytest.fixture(scope="module")
def fitted(smc, model, galaxies):
    return fit_galaxies(smc, model, galaxies, np.arange(N_GALAXIES), 1, batch_size=4, draws=200)


def test_smc_agrees_with_importance_sampling(model, student, pool, galaxies, fitted):
    ids = np.arange(N_GALAXIES)
    weighted = AmplitudeSampler(pool, n_picks=32_768, n_values=8192, conditional=student)
    reference = fit_galaxies(weighted, model, galaxies, ids, 1, batch_size=4, draws=1024)
    both = (reference.status == Status.OK) & (fitted.status == Status.OK)
    assert both.sum() >= 6
    size = 1.0 / (1.0 / reference.ess[both] + 1.0 / fitted.ess[both] + 1.0 / 200)
    shift = (fitted.theta.mean(1) - reference.theta.mean(1))[both] / reference.theta.std(1)[both]
    assert np.sqrt(np.mean(shift**2 * size[:, None])) < 1.5
    difference = fitted.log_evidence[both] - reference.log_evidence[both]
    # Errors of ln Z of either: at most 0.15 for the one, about 0.1 for the other.
    assert np.sqrt(np.mean(difference**2)) < 0.3 and np.abs(np.mean(difference)) < 0.2
    width = (fitted.theta.std(1) / reference.theta.std(1))[both].mean()
    assert width == pytest.approx(1.0, abs=0.08)


def test_a_galaxy_depends_on_nothing_but_its_identifier(model, student, pool, smc, galaxies, fitted):
    """Other company on SMC; other company and another batch size on the amplitude rung: equal to the byte."""
    company = np.array([9, 2, 14])
    few = Photometry(*(x[company] for x in galaxies))
    again = fit_galaxies(smc, model, few, company, 1, batch_size=4, draws=200)
    amplitude = AmplitudeSampler(pool, n_picks=4096, n_values=1024, conditional=student)
    whole = fit_galaxies(amplitude, model, galaxies, np.arange(N_GALAXIES), 1, batch_size=8, draws=50)
    part = fit_galaxies(amplitude, model, few, company, 1, batch_size=3, draws=50)
    for name in fitted._fields:
        np.testing.assert_array_equal(getattr(fitted, name)[company], getattr(again, name), err_msg=name)
        np.testing.assert_array_equal(getattr(whole, name)[company], getattr(part, name), err_msg=name)


def test_a_student_is_needed(model):
    with pytest.raises(ConfigurationError, match="amplitude student"):
        MarginalSMC(pool=None)
