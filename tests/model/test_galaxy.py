import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.photometry import BandState, Photometry
from tests import toy


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


def one_galaxy(redshift=np.nan, redshift_err=np.nan):
    _, photometry = toy.toy_photometry(1, seed=4)
    single = Photometry(*(jnp.asarray(x[0]) for x in photometry))
    as_array = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return single._replace(redshift=as_array(redshift), redshift_err=as_array(redshift_err))


@pytest.mark.parametrize("redshift", [np.nan, 1.4])
def test_target_is_the_exact_posterior_up_to_its_evidence(model, redshift):
    """ln target(u) - ln posterior(theta(u)) is ln evidence wherever it is evaluated."""
    photometry = one_galaxy(redshift, 0.05 if np.isfinite(redshift) else np.nan)
    answer = toy.exact(photometry)
    root = toy.arrays()["cholesky"].astype(float)
    u = np.random.default_rng(0).normal(size=(5, toy.SPACE.size)) * 0.5
    theta = toy.arrays()["mean"] + u @ root.T
    residual = theta - answer.mean
    log_posterior = -0.5 * np.einsum("ij,jk,ik->i", residual, np.linalg.inv(answer.covariance), residual)
    log_posterior -= 0.5 * np.linalg.slogdet(2 * np.pi * answer.covariance)[1]
    log_posterior += np.log(np.diag(root)).sum()  # density of u, not of theta
    target = jax.vmap(lambda x: model.log_target(x, photometry))(jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose(np.asarray(target) - log_posterior, answer.log_evidence, atol=2e-2)


def test_stored_moments_give_the_same_likelihood(model):
    photometry, u = one_galaxy(), jnp.full(toy.SPACE.size, 0.3)
    theta = model.theta(u)
    stored = model.log_likelihood_of_moments(*model.moments(theta), model.redshift(theta), photometry)
    assert stored == model.log_likelihood(u, photometry)
    np.testing.assert_allclose(model.moments(theta)[0], model.predict(theta))


def test_missing_bands_do_not_matter(model):
    photometry, u = one_galaxy(), jnp.zeros(toy.SPACE.size)
    state = photometry.state.at[2].set(BandState.MISSING)
    with_gap = photometry._replace(state=state)
    other = with_gap._replace(flux=with_gap.flux.at[2].set(1e9))
    assert model.log_likelihood(u, with_gap) == model.log_likelihood(u, other)
    rest = tuple(band for index, band in enumerate(toy.BANDS) if index != 2)
    keep = jnp.asarray([0, 1, 3, 4, 5])
    fewer = GalaxyModel(
        model.emulator.select(rest),
        Likelihood(toy.ZERO_POINTS[np.asarray(keep)], 0.0, "gaussian"),
        model.prior,
    )
    selected = Photometry(*(x[keep] for x in photometry[:3]), *photometry[3:])
    assert float(fewer.log_likelihood(u, selected)) == pytest.approx(
        float(model.log_likelihood(u, with_gap)), rel=1e-5
    )


def test_finite_for_absurd_parameters(model):
    for value in (1e20, -1e30, np.inf, np.nan):
        target = model.log_target(jnp.full(toy.SPACE.size, value, jnp.float32), one_galaxy())
        assert np.isfinite(float(target)) and float(target) < -1e6


def test_simulated_galaxies_follow_the_prior_predictive(model):
    state = jnp.full(6, BandState.OBSERVED, jnp.int8)
    draw = jax.jit(jax.vmap(lambda key: model.simulate(key, jnp.asarray(toy.ERRORS, jnp.float32), state)))
    theta, photometry = draw(jax.random.split(jax.random.PRNGKey(1), 4000))
    weights = toy.arrays()
    design = toy.ZERO_POINTS[:, None] * weights["matrix"]
    covariance = design @ weights["cholesky"] @ weights["cholesky"].T @ design.T + np.diag(toy.ERRORS**2)
    mean = toy.ZERO_POINTS * (weights["matrix"] @ weights["mean"] + weights["offset"])
    pull = (np.mean(photometry.flux, 0) - mean) / np.sqrt(np.diag(covariance) / 4000)
    assert np.all(np.abs(pull) < 4)
    np.testing.assert_allclose(np.cov(photometry.flux.T), covariance, atol=0.15 * np.max(covariance))
    assert theta.shape == (4000, toy.SPACE.size) and np.all(np.isnan(photometry.redshift))


def test_refuses_mismatched_parts(model):
    with pytest.raises(ConfigurationError, match="zero point"):
        GalaxyModel(model.emulator, Likelihood(np.ones(2), 0.0), model.prior)
    with pytest.raises(BundleError, match="nonsense"):
        model.emulator.select(("g", "nonsense"))


def test_is_a_pytree_of_arrays(model):
    doubled = jax.tree.map(lambda x: 2 * x, eqx.filter(model, eqx.is_array))
    assert jax.tree.structure(doubled) is not None
