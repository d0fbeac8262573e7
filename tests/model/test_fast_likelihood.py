"""The product form of the likelihood against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.photometry import BandState, Photometry

N_BANDS, N_DRAWS = 26, 500


def galaxy(snr: float, states: bool) -> tuple[Photometry, np.ndarray]:
    random = np.random.default_rng(int(snr))
    flux = random.lognormal(1.0, 1.0, N_BANDS).astype(np.float32)
    error = (flux / snr).astype(np.float32)
    state = np.full(N_BANDS, BandState.OBSERVED.value, np.int8)
    if states:
        state[3], state[7], state[11] = BandState.MISSING, BandState.LIMIT, BandState.LIMIT
    scatter = random.normal(1.0, 0.3, (N_BANDS, N_DRAWS)) * 10 ** random.uniform(-4, 2, N_DRAWS)
    known = np.float32(np.nan)
    return Photometry(flux, error, state, known, known), (flux[:, None] * scatter).astype(np.float32)


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("snr", [2.0, 50.0, 1e5])
@pytest.mark.parametrize(("family", "nu"), [("student_t", 2.0), ("student_t", 5.0), ("gaussian", 2.0)])
def test_equals_the_plain_likelihood(family, nu, snr, states):
    photometry, flux = galaxy(snr, states)
    likelihood = Likelihood(np.linspace(0.9, 1.1, N_BANDS), 0.03, family, nu)
    sigma = jnp.full(N_BANDS, 0.01)
    plain = jax.vmap(lambda f: likelihood.log_prob(f, sigma, photometry))(jnp.asarray(flux.T))
    variance = jnp.full(flux.shape, 0.03**2 + 0.01**2)
    fast = log_prob_of_fluxes(likelihood, jnp.asarray(flux), variance, photometry)
    assert np.all(np.isfinite(fast))
    np.testing.assert_allclose(fast, plain, rtol=3e-6, atol=2e-3)


def test_further_variance_adds_up():
    photometry, flux = galaxy(20.0, False)
    likelihood = Likelihood(np.ones(N_BANDS), 0.0)
    extra = 3.0 * np.broadcast_to(photometry.flux_err[:, None] ** 2, flux.shape)
    zero = jnp.zeros(flux.shape)
    blurred = log_prob_of_fluxes(likelihood, jnp.asarray(flux), zero, photometry, jnp.asarray(extra))
    doubled = photometry._replace(flux_err=2 * photometry.flux_err)
    # The normalisation stays that of the measurement: ln sigma moves with the variance of the draws alone.
    same = log_prob_of_fluxes(likelihood, jnp.asarray(flux), zero, doubled)
    np.testing.assert_allclose(blurred, same, rtol=1e-5, atol=1e-3)
