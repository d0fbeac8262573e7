"""The ladder: who climbs, what is kept, and what it costs."""

import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference.ladder import Ladder, Rung, climb
from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
from popcosmos_hpc.inference.pool_start import PoolSMC
from popcosmos_hpc.photometry import BandState, Photometry
from tests import toy, toy_pool

N_GALAXIES = 40


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def ladder():
    pool = pool_on_device(toy_pool.store())
    smc = PoolSMC(pool=pool, n_particles=64, n_moves=12, n_picks=8192)
    return Ladder((Rung("pool", PoolSampler(pool, n_picks=8192)), Rung("smc", smc)))


@pytest.fixture(scope="module")
def galaxies():
    """Ordinary galaxies; one without flux errors, one with a band at infinity, one far from the prior."""
    photometry = toy.toy_photometry(N_GALAXIES, seed=8, missing=0.2)[1]
    flux, error = photometry.flux.copy(), photometry.flux_err.copy()
    error[3] = 0.0
    flux[5, 2] = np.inf
    flux[7] += 60.0
    return photometry._replace(flux=flux, flux_err=error)


@pytest.fixture(scope="module")
def fits(ladder, model, galaxies):
    counted = []
    fitted = climb(ladder, model, galaxies, np.arange(N_GALAXIES), 1, 8, counted.append, draws=200)
    assert sum(counted) == N_GALAXIES
    return fitted


def test_every_galaxy_leaves_with_a_status(fits):
    assert fits.status[3] == fits.status[5] == Status.BAD_PHOTOMETRY
    assert np.all(fits.sampler[[3, 5]] == -1)
    assert fits.status[7] in (Status.POOR_FIT, Status.NOT_CONVERGED)
    others = np.delete(np.arange(N_GALAXIES), [3, 5, 7])
    assert np.mean(fits.status[others] == Status.OK) > 0.9


def test_galaxies_that_the_pool_certifies_stay_on_it(fits):
    on_pool = fits.sampler == PoolSampler.identifier
    assert 0.5 < on_pool.mean() < 1.0
    assert np.all(fits.n_evaluations[on_pool] == 0)
    climbed = fits.sampler == PoolSMC.identifier
    assert climbed.any() and np.all(fits.n_evaluations[climbed] > 0)


def test_all_rungs_find_the_exact_posterior(fits, galaxies):
    for identifier in (PoolSampler.identifier, PoolSMC.identifier):
        pulls, log_ratio = [], []
        for i in np.flatnonzero((fits.sampler == identifier) & (fits.status == Status.OK)):
            answer = toy.exact(Photometry(*(x[i] for x in galaxies)))
            size = 1.0 / (1.0 / fits.ess[i] + 1.0 / fits.theta.shape[1])
            sd = np.sqrt(np.diag(answer.covariance))
            pulls.append((fits.theta[i].mean(0) - answer.mean) / sd * np.sqrt(size))
            log_ratio.append(fits.log_evidence[i] - answer.log_evidence)
        # Systematic draws scatter less than independent ones, so the lower bound is loose.
        assert 0.3 < np.sqrt(np.mean(np.square(pulls))) < 1.4
        assert np.sqrt(np.mean(np.square(log_ratio))) < 0.2


def test_a_galaxy_depends_on_nothing_but_its_identifier(ladder, model, galaxies, fits):
    company = np.array([11, 2, 30, 8])
    few = Photometry(*(x[company] for x in galaxies))
    again = climb(ladder, model, few, company, 1, 8, draws=200)
    for name in fits._fields:
        np.testing.assert_array_equal(getattr(fits, name)[company], getattr(again, name), err_msg=name)


def test_a_ladder_without_rungs_is_refused():
    with pytest.raises(ConfigurationError, match="at least one rung"):
        Ladder(())


def test_strange_galaxies_get_an_answer_or_a_flag(ladder, model, galaxies):
    """One band; none; a signal to noise of 1e5; a flux that no galaxy of the population has."""
    part = Photometry(*(x[10:14].copy() for x in galaxies))
    part.state[:] = BandState.OBSERVED
    part.flux[:] = np.nan_to_num(part.flux, nan=10.0)
    part.state[0, 1:] = BandState.MISSING
    part.state[1] = BandState.MISSING
    part.flux_err[2] = np.abs(part.flux[2]) / 1e5
    part.flux[3, 2] = 1e4
    fitted = climb(ladder, model, part, np.arange(4), 1, 8, draws=200)
    assert fitted.status[0] == Status.OK
    assert fitted.status[1] == Status.NO_OBSERVED_BAND
    assert fitted.sampler[2] == PoolSMC.identifier  # no pool serves it
    assert fitted.status[3] in (Status.POOR_FIT, Status.NOT_CONVERGED)
    assert np.isfinite(fitted.theta[[0, 2, 3]]).all()
