import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.photometry import BandState
from tests import toy

BANDS = ("g", "r", "i")


def chosen(conditions, flux, flux_err=(0.1, 0.1, 0.1), state=(1, 1, 1)):
    arguments = (jnp.asarray(flux), jnp.asarray(flux_err), jnp.asarray(state, jnp.int8))
    return bool(Selection(BANDS, conditions)(*arguments))


def test_each_condition_counts_and_all_must_hold():
    bright = Condition("r", brighter_than=22.5)  # one nanomaggy
    assert chosen([], [0.0, -5.0, 0.0])
    assert chosen([bright], [0.0, 1.01, 0.0]) and not chosen([bright], [9.0, 0.99, 9.0])
    assert not chosen([bright], [9.0, -3.0, 9.0])
    faint = Condition("r", fainter_than=20.0)  # ten nanomaggies
    assert chosen([bright, faint], [0.0, 9.9, 0.0]) and not chosen([bright, faint], [0.0, 10.1, 0.0])
    significant = Condition("i", min_snr=5.0)
    assert chosen([significant], [0.0, 0.0, 0.51]) and not chosen([significant], [0.0, 0.0, 0.49])
    assert not chosen([bright, significant], [0.0, 1.5, 0.1])
    assert not chosen([Condition("r", 22.5, 20.0, 50.0)], [0.0, 4.9, 0.0])
    assert chosen([Condition("r", 22.5, 20.0, 50.0)], [0.0, 5.1, 0.0])


def test_a_band_that_is_not_observed_detects_nothing():
    bright = Condition("r", brighter_than=22.5)
    assert not chosen([bright], [9.0, 9.0, 9.0], state=(1, BandState.MISSING, 1))
    assert chosen([bright], [9.0, 9.0, 9.0], state=(0, 1, 0))


def test_unknown_bands_are_refused():
    with pytest.raises(ConfigurationError, match=r"selection: expected bands among g, r, i; got y"):
        Selection(BANDS, [Condition("y", 20.0)])
    with pytest.raises(ConfigurationError, match=r"coverage: .* got Ks"):
        Coverage(BANDS, [(("r", "Ks"), 0.1)])


def test_coverage_takes_groups_of_bands_as_wholes():
    coverage = Coverage(BANDS, [(("g",), 0.3), (("r", "i"), 0.1)])
    n = 4000
    states = jax.vmap(lambda key: coverage.sample(key, 3))(jax.random.split(jax.random.PRNGKey(0), n))
    missing = np.asarray(states) == BandState.MISSING
    np.testing.assert_array_equal(missing[:, 1], missing[:, 2])
    for band, share in ((0, 0.3), (1, 0.1)):  # 4.5 standard errors of a binomial
        assert abs(missing[:, band].mean() - share) < 4.5 * np.sqrt(share * (1 - share) / n)
    both = (missing[:, 0] & missing[:, 1]).mean()
    assert abs(both - 0.03) < 4.5 * np.sqrt(0.03 / n)
    assert set(np.unique(states)) == {BandState.MISSING, BandState.OBSERVED}


def test_a_candidate_is_observed_as_the_likelihood_says():
    galaxy = toy.toy_model()
    uncertainty = ConstantUncertainty(toy.BANDS, toy.ERRORS)
    model = MockModel(galaxy, uncertainty, Selection(toy.BANDS, []), Coverage(toy.BANDS))
    n = 2000
    found = jax.jit(jax.vmap(model.candidate))(jax.random.split(jax.random.PRNGKey(1), n))
    np.testing.assert_allclose(found.true_flux, jax.vmap(galaxy.predict)(found.theta), rtol=1e-5, atol=1e-5)
    pull = (found.flux - found.true_flux) / found.flux_err
    assert np.abs(pull.mean(axis=0)).max() < 4.5 / np.sqrt(n)
    assert np.abs(pull.std(axis=0) - 1).max() < 4.5 / np.sqrt(2 * n)
    weights = toy.arrays()
    scatter = np.sqrt(np.diag(weights["cholesky"] @ weights["cholesky"].T))
    assert np.all(np.abs(found.theta.mean(axis=0) - weights["mean"]) < 4.5 * scatter / np.sqrt(n))
    assert bool(found.selected.all())


def test_redshifts_outside_the_emulator_are_cut():
    galaxy = toy.toy_model()
    uncertainty = ConstantUncertainty(toy.BANDS, toy.ERRORS)
    model = MockModel(galaxy, uncertainty, Selection(toy.BANDS, []), Coverage(toy.BANDS))
    assert bool(model._usable(jnp.asarray(9.9), jnp.ones(2), jnp.ones(2)))
    assert not bool(model._usable(jnp.asarray(10.1), jnp.ones(2), jnp.ones(2)))
    assert not bool(model._usable(jnp.asarray(1.0), jnp.asarray([1.0, np.nan]), jnp.ones(2)))


def test_errors_of_other_bands_are_refused():
    uncertainty = ConstantUncertainty(toy.BANDS[::-1], toy.ERRORS)
    with pytest.raises(ConfigurationError, match="in this order"):
        MockModel(toy.toy_model(), uncertainty, Selection(toy.BANDS, []), Coverage(toy.BANDS))
