import numpy as np
import pytest

from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.inference.summary import QUANTILES, REDSHIFT_QUANTILES, summarise, summary_names
from popcosmos_hpc.model.emulator import LinearEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from tests import toy


class WithDerived(LinearEmulator):
    """The toy emulator with one derived quantity."""

    def derived(self, theta):
        return theta[:1] * 2.0


def model_with_derived():
    model = toy.toy_model()
    emulator = WithDerived(model.emulator.matrix, model.emulator.offset, toy.BANDS)
    # The base class names no derived quantities, and modules are frozen.
    object.__setattr__(emulator, "derived_names", ("twice_N",))
    object.__setattr__(emulator, "derived_units", ("mag",))
    return GalaxyModel(emulator, model.likelihood, model.prior)


def posterior(theta):
    return Posterior(theta, *([None] * (len(Posterior._fields) - 1)))


def test_quantiles_of_parameters_and_derived_quantities():
    model = model_with_derived()
    theta = np.random.default_rng(0).normal(size=(3, 500, toy.SPACE.size)).astype(np.float32)
    theta[1] = np.nan
    summary = summarise(model, posterior(theta))
    names = summary_names(model)
    assert names == (*toy.SPACE.names, "twice_N")
    assert summary.values.shape == (3, len(names), len(QUANTILES)) and summary.values.dtype == np.float32
    expected = np.percentile(theta[0, :, 1], QUANTILES)
    np.testing.assert_allclose(summary.values[0, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(summary.values[:, -1], 2 * summary.values[:, 0], rtol=1e-5)
    assert np.all(np.isnan(summary.values[1])) and np.all(np.isnan(summary.redshift_quantiles[1]))
    assert np.all(np.isfinite(summary.values[[0, 2]]))
    expected = np.percentile(theta[2, :, -1], REDSHIFT_QUANTILES)
    np.testing.assert_allclose(summary.redshift_quantiles[2], expected, rtol=1e-4, atol=1e-5)


def test_levels():
    assert len(REDSHIFT_QUANTILES) == 21
    assert list(REDSHIFT_QUANTILES) == sorted(REDSHIFT_QUANTILES)
    np.testing.assert_allclose(np.array(REDSHIFT_QUANTILES) + REDSHIFT_QUANTILES[::-1], 100.0)


@pytest.mark.parametrize("count", [0, 1])
def test_few_galaxies(count):
    summary = summarise(toy.toy_model(), posterior(np.zeros((count, 10, toy.SPACE.size), np.float32)))
    assert summary.values.shape == (count, toy.SPACE.size, 5)


def test_rows_do_not_depend_on_their_block():
    model = model_with_derived()
    theta = np.random.default_rng(1).normal(size=(30, 200, toy.SPACE.size)).astype(np.float32)
    whole = summarise(model, posterior(theta))
    part = summarise(model, posterior(theta[11:13]))
    np.testing.assert_array_equal(whole.values[11:13], part.values)
