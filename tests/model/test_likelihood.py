import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import BandState, Photometry

NONE = jnp.float32(jnp.nan)
OBSERVED = [BandState.OBSERVED] * 3


def photometry(flux, error, state=OBSERVED, redshift=NONE, redshift_err=NONE):
    single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return Photometry(
        single(flux), single(error), jnp.asarray(state, jnp.int8), single(redshift), single(redshift_err)
    )


MODEL = np.array([1.0, 5.0, 20.0])
EMULATOR = np.array([0.01, 0.02, 0.0])
ZERO_POINTS = np.array([1.1, 0.9, 1.0])
FLOOR = np.array([0.03, 0.0, 0.1])


def expected(family, nu, flux, error, state):
    predicted = ZERO_POINTS * MODEL
    sigma = np.sqrt(np.square(error) + (FLOOR**2 + EMULATOR**2) * predicted**2)
    noise = stats.norm() if family == "gaussian" else stats.t(nu)
    residual = (flux - predicted) / sigma
    density, limit = noise.logpdf(residual) - np.log(sigma), noise.logcdf(residual)
    return np.sum(np.select([np.equal(state, 1), np.equal(state, 2)], [density, limit], 0.0))


@pytest.mark.parametrize(("family", "nu"), [("student_t", 2.0), ("student_t", 5.0), ("gaussian", 2.0)])
@pytest.mark.parametrize("state", [[1, 1, 1], [1, 2, 1], [2, 0, 2], [0, 0, 1], [0, 0, 0]])
def test_matches_scipy(family, nu, state):
    likelihood = Likelihood(ZERO_POINTS, FLOOR, family, nu)
    flux, error = np.array([-0.3, 4.0, 35.0]), np.array([0.5, 1.0, 2.0])
    ours = likelihood.log_prob(
        jnp.asarray(MODEL, jnp.float32), jnp.asarray(EMULATOR, jnp.float32), photometry(flux, error, state)
    )
    assert float(ours) == pytest.approx(expected(family, nu, flux, error, state), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize(("family", "nu"), [("student_t", 2.0), ("student_t", 3.0), ("gaussian", 2.0)])
def test_limits_in_both_far_tails(family, nu):
    """Against scipy in float64; 1e5 sigma below the limit for the power-law tail."""
    likelihood = Likelihood(np.ones(1), 0.0, family, nu)
    residual = np.array([-1e5, -3e3, -100.0, -10.0, -1.0, 0.0, 1.0, 8.0, 1e4])
    if family == "gaussian":
        residual = residual[2:]
    cdf = lambda x: likelihood.log_prob(  # noqa: E731
        jnp.zeros(1), jnp.zeros(1), photometry([0.0], [1.0], [2])._replace(flux=x[None])
    )
    ours = np.asarray(jax.vmap(cdf)(jnp.asarray(residual, jnp.float32)))
    noise = stats.norm() if family == "gaussian" else stats.t(nu)
    np.testing.assert_allclose(ours, noise.logcdf(residual), rtol=1e-4, atol=1e-6)


def test_density_integrates_to_one_over_the_flux():
    likelihood = Likelihood(np.ones(1), 0.05, "student_t", 2.0)
    grid = 4.0 + np.sinh(np.linspace(-12, 12, 4001)) * 0.1
    density = jax.vmap(
        lambda x: likelihood.log_prob(
            jnp.full(1, 4.0), jnp.full(1, 0.02), photometry([0.0], [0.3])._replace(flux=x[None])
        )
    )
    values = np.exp(np.asarray(density(jnp.asarray(grid, jnp.float32)), np.float64))
    assert np.trapezoid(values, grid) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("family", ["student_t", "gaussian"])
def test_absurd_numbers_stay_finite(family):
    likelihood = Likelihood(np.ones(3), 0.03, family)
    data = photometry([1.0, -1e30, 1e30], [1e-20, 1e-3, 1e20])
    for state in ([1, 1, 1], [2, 2, 2]):
        for flux in (0.0, 1e30, -1e30, np.inf, np.nan, 1e-38):
            value = likelihood.log_prob(
                jnp.full(3, flux, jnp.float32),
                jnp.zeros(3),
                data._replace(state=jnp.asarray(state, jnp.int8)),
            )
            assert np.isfinite(float(value)) and float(value) >= 1.001 * LOWEST
    nan = likelihood.log_prob(jnp.full(3, jnp.nan), jnp.zeros(3), data)
    assert float(nan) == pytest.approx(LOWEST)


def test_known_redshift_is_a_gaussian_datum_with_a_floor():
    likelihood = Likelihood(np.ones(1), 0.0, redshift_floor=1e-3)
    datum = lambda z, err: photometry([1.0], [1.0], [1], z, err)  # noqa: E731
    at = lambda z, err, model: float(likelihood.redshift_log_prob(jnp.float32(model), datum(z, err)))  # noqa: E731
    assert at(0.5, 0.01, 0.52) == pytest.approx(stats.norm(0.5, 0.01).logpdf(0.52), rel=1e-3)
    assert at(0.5, 1e-6, 0.501) == pytest.approx(stats.norm(0.5, 1.5e-3).logpdf(0.501), rel=1e-3)
    assert at(0.5, np.nan, 0.501) == pytest.approx(stats.norm(0.5, 1.5e-3).logpdf(0.501), rel=1e-3)
    assert at(np.nan, np.nan, 0.501) == 0.0
    assert np.isfinite(at(0.5, 0.01, np.inf))


def test_simulated_photometry_has_the_stated_noise():
    likelihood = Likelihood(np.full(2, 1.1), 0.1, "student_t", 2.0)
    state = jnp.asarray([BandState.OBSERVED, BandState.MISSING], jnp.int8)
    simulate = lambda key: likelihood.simulate(key, jnp.full(2, 3.0), jnp.zeros(2), jnp.full(2, 0.2), state)  # noqa: E731
    flux, states = jax.vmap(simulate)(jax.random.split(jax.random.PRNGKey(0), 5000))
    residual = (np.asarray(flux[:, 0], float) - 3.3) / np.hypot(0.2, 0.33)
    assert stats.kstest(residual, stats.t(2).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(states[0], state)


def test_simulated_limits_are_censored():
    likelihood = Likelihood(np.ones(2), 0.0, "gaussian")
    state = jnp.full(2, BandState.LIMIT, jnp.int8)
    flux, states = likelihood.simulate(
        jax.random.PRNGKey(0), jnp.asarray([0.1, 50.0]), jnp.zeros(2), jnp.ones(2), state, 5.0
    )
    np.testing.assert_array_equal(states, [BandState.LIMIT, BandState.OBSERVED])
    assert flux[0] == 5.0 and flux[1] > 40.0


def test_refuses_an_unknown_family():
    with pytest.raises(ConfigurationError, match=r"likelihood\.family"):
        Likelihood(np.ones(1), 0.0, "cauchy")
    with pytest.raises(ConfigurationError, match=r"likelihood\.nu"):
        Likelihood(np.ones(1), 0.0, "student_t", -1.0)
