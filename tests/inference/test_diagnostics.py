import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.diagnostics import effective_size, predictive_p, rhat
from popcosmos_hpc.inference.sampler import build_sampler
from popcosmos_hpc.photometry import Photometry
from tests import toy


def test_effective_size_of_independent_and_of_repeated_draws():
    random = np.random.default_rng(0)
    sizes, repeated = [], []
    for _ in range(30):
        draws = random.normal(size=(4, 16, 10)) + 5.0
        sizes.append(float(effective_size(jnp.asarray(draws))))
        repeated.append(float(effective_size(jnp.asarray(np.repeat(draws, 8, axis=1)))))
    assert np.median(sizes) == pytest.approx(60, rel=0.25)
    assert np.median(repeated) == pytest.approx(np.median(sizes), rel=0.3), "copies add nothing"


def test_rhat_sees_one_lost_ensemble():
    draws = np.random.default_rng(0).normal(size=(4, 100, 3))
    assert rhat(jnp.asarray(draws)) < 1.03
    draws[0, :, 1] += 3.0
    assert rhat(jnp.asarray(draws)) > 1.5


def test_constant_ensembles_are_not_called_converged():
    constant = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 10, 2))
    assert rhat(constant) > 10 and effective_size(constant) < 1
    assert np.isfinite(rhat(jnp.zeros((4, 10, 2))))


@pytest.mark.parametrize("family", ["gaussian", "student_t"])
def test_predictive_p_is_central_for_good_and_tiny_for_bad_fits(family):
    model = toy.toy_model(family)
    theta, photometry = toy.toy_photometry(40, seed=0)
    p = jax.jit(
        jax.vmap(
            lambda key, theta, row: predictive_p(key, model, jnp.broadcast_to(theta, (50, 5)), row),
            (0, 0, 0),
        )
    )
    keys = jax.random.split(jax.random.PRNGKey(0), 40)
    single = Photometry(*(jnp.asarray(x) for x in photometry))
    good = p(keys, jnp.asarray(theta, jnp.float32), single)
    assert 0.3 < np.mean(good) < (0.7 if family == "gaussian" else 0.95)
    bad = p(keys, jnp.asarray(theta, jnp.float32), single._replace(flux=single.flux + 1e5))
    assert np.all(np.asarray(bad) < 1e-3)
    unobserved = p(keys, jnp.asarray(theta, jnp.float32), single._replace(state=single.state * 0))
    np.testing.assert_array_equal(unobserved, 1.0)


def test_impossible_photometry_is_a_poor_fit():
    _, photometry = toy.toy_photometry(2, seed=0)
    flux = photometry.flux.copy()
    flux[1] += np.array([6, -6, 6, -6, 6, -6], np.float32)
    sampler = build_sampler("smc", n_particles=64, n_pool=8192, n_moves=16)
    fit = fit_galaxies(sampler, toy.toy_model(), photometry._replace(flux=flux), np.arange(2), 1, 2)
    assert list(fit.status) == [Status.OK, Status.POOR_FIT]
