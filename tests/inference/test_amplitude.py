"""N drawn anew: best amplitudes, proposals, and agreement with plain importance sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from popcosmos_hpc.campaign.mock_draws import draw_galaxies
from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_config import load_pool_config
from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.amplitude import AmplitudeSampler, fit_amplitude, student_t4
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.model.student_bundle import load_amplitude
from popcosmos_hpc.photometry import BandState, Photometry

N_GALAXIES = 24


@pytest.mark.parametrize("family", ["student_t", "gaussian"])
def test_the_best_amplitude_is_the_most_likely(family):
    random = np.random.default_rng(1)
    flux = random.lognormal(1.0, 0.5, (9, 40)).astype(np.float32)
    datum = (flux[:, 0] * 3.0 * random.normal(1.0, 0.05, 9)).astype(np.float32)
    state = np.full(9, BandState.OBSERVED.value, np.int8)
    state[4] = BandState.MISSING
    unknown = np.float32(np.nan)
    photometry = Photometry(datum, (0.05 * datum).astype(np.float32), state, unknown, unknown)
    likelihood, variance = Likelihood(np.linspace(0.9, 1.1, 9), 0.03, family), jnp.full(flux.shape, 0.03**2)
    found = fit_amplitude(likelihood, jnp.asarray(flux), variance, photometry)

    def negative(log_factor):
        model = jnp.asarray(flux[:, 0] * np.float32(np.exp(log_factor)))
        return -float(likelihood.log_prob(model, jnp.zeros(9), photometry))

    best = optimize.minimize_scalar(negative, bounds=(0.5, 1.8), method="bounded")
    curvature = (negative(best.x + 0.05) + negative(best.x - 0.05) - 2 * best.fun) / 0.05**2
    assert float(found.log_factor[0]) == pytest.approx(best.x, abs=0.3 / np.sqrt(curvature))
    assert float(found.sd[0]) * np.sqrt(curvature) == pytest.approx(1.0, abs=0.4)
    assert np.all(np.isfinite(found.log_factor)) and np.all(found.sd > 0)


def test_proposals_follow_their_density():
    draw, log_density = student_t4(jax.random.PRNGKey(0), 20_000)
    assert stats.kstest(np.asarray(draw), stats.t(4).cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_density, stats.t(4).logpdf(np.asarray(draw)), atol=1e-4)


@pytest.fixture(scope="module")
def model():
    bundle = load_bundle("kids9")
    likelihood = Likelihood(np.ones(len(bundle.bands)), 0.03)
    return GalaxyModel(bundle.emulator(bundle.bands), likelihood, bundle.prior("reference"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    config = load_pool_config("kids").model_copy(update={"n_draws": 65_536, "n_tiles": 4096})
    return pool_on_device(build_survey_pool(config, tmp_path_factory.mktemp("amplitude") / "pool"))


@pytest.fixture(scope="module")
def galaxies(model):
    errors = np.array(load_pool_config("kids").softening(model.bands), np.float32)
    selection = Selection(model.bands, [Condition("r", brighter_than=25.0)])
    mock = MockModel(model, ConstantUncertainty(model.bands, errors), selection, Coverage(model.bands, []))
    drawn = draw_galaxies(mock, 3, np.arange(N_GALAXIES))
    unknown = np.full(N_GALAXIES, np.nan, np.float32)
    return Photometry(drawn.flux, drawn.flux_err, drawn.state, unknown, unknown)


def test_agrees_with_plain_importance_sampling_and_reaches_further(model, pool, galaxies):
    """Evidence within the errors of both; more galaxies certified from the same few draws.

    The student's prior differs from the population's by its own KL, some hundredths of a nat.
    """
    student = load_amplitude("reference_amplitude", "proposal", "reference")
    ids = np.arange(N_GALAXIES)
    plain = fit_galaxies(PoolSampler(pool, n_picks=8192), model, galaxies, ids, seed=1)
    anew = fit_galaxies(
        AmplitudeSampler(pool, n_picks=8192, conditional=student), model, galaxies, ids, seed=1
    )
    both = (plain.ess > 50) & (anew.ess > 50)
    assert both.sum() >= 6
    pull = (anew.log_evidence - plain.log_evidence)[both]
    error = np.sqrt(1 / plain.ess + 1 / anew.ess + 0.05**2)[both]
    assert np.sqrt(np.mean((pull / error) ** 2)) < 1.5
    assert np.sum(anew.status == Status.OK) > np.sum(plain.status == Status.OK)
    hard = plain.ess < 300
    assert hard.sum() >= 4 and np.median((anew.ess / plain.ess)[hard]) > 2.0
    assert np.all(np.isfinite(anew.log_prior[anew.status == Status.OK]))


def test_draws_carry_their_own_likelihood(model, pool, galaxies):
    student = load_amplitude("reference_amplitude", "proposal", "reference")
    sampler = AmplitudeSampler(pool, n_picks=8192, conditional=student)
    one = Photometry(*(x[:1] for x in galaxies))
    fit = fit_galaxies(sampler, model, one, np.arange(1), seed=1, draws=20)
    clean = Photometry(*(jnp.asarray(x[0]) for x in one))

    def log_likelihood(theta):
        redshift = model.redshift(theta)
        return model.likelihood.log_prob(model.emulator(theta), model.emulator.sigma(redshift), clean)

    expected = jax.vmap(log_likelihood)(jnp.asarray(fit.theta[0]))
    np.testing.assert_allclose(fit.log_likelihood[0], expected, atol=0.1)
