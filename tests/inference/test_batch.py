import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference import batch
from popcosmos_hpc.inference.batch import examine, fit_galaxies, galaxy_keys
from popcosmos_hpc.inference.sampler import build_sampler
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import BandState, Photometry
from tests import toy

SMALL = {"n_particles": 16, "n_pool": 2048, "n_moves": 6, "max_stages": 6}


class Perceptron(AbstractEmulator):
    """A network as wide as a real one, so that its matrix products take the same paths."""

    first: jax.Array
    second: jax.Array
    last: jax.Array
    bands: tuple[str, ...] = eqx.field(static=True, default=toy.BANDS)
    redshift_range: tuple[float, float] = eqx.field(static=True, default=(-5.0, 10.0))
    derived_names: tuple[str, ...] = eqx.field(static=True, default=())
    derived_units: tuple[str, ...] = eqx.field(static=True, default=())

    def __call__(self, theta):
        hidden = jax.nn.swish(theta @ self.first)
        hidden = jax.nn.swish(hidden @ self.second)
        return 10.0 * jnp.exp(0.3 * (hidden @ self.last))

    def sigma(self, redshift):
        return jnp.full(len(self.bands), 0.02)

    def select(self, bands):
        raise NotImplementedError

    def derived(self, theta):
        return jnp.zeros(0)


def network_model():
    random = np.random.default_rng(0)
    layer = lambda rows, columns: jnp.asarray(  # noqa: E731
        random.normal(size=(rows, columns)) / np.sqrt(rows), jnp.float32
    )
    linear = toy.toy_model("student_t", 0.03)
    return GalaxyModel(
        Perceptron(layer(5, 200), layer(200, 200), layer(200, 6)), linear.likelihood, linear.prior
    )


def take(photometry, rows):
    return Photometry(*(x[rows] for x in photometry))


@pytest.fixture(scope="module")
def sampler():
    return build_sampler("smc", **SMALL)


@pytest.mark.parametrize("build", [toy.toy_model, network_model])
def test_bytes_do_not_depend_on_company(sampler, build):
    """Other neighbours, order, number of galaxies and slots: the same bytes in every field."""
    model = build()
    _, photometry = toy.toy_photometry(12, seed=1, missing=0.2)
    ids = np.arange(12, dtype=np.int64) * 2**33 + 7
    whole = fit_galaxies(sampler, model, photometry, ids, 3, batch_size=5, draws=20)
    others = [(np.arange(12)[::-1], 5), (np.array([7]), 5), (np.array([2, 9, 4, 4, 0, 11]), 5)]
    if build is network_model:
        others.append((np.array([3, 8, 1]), 2))
    for rows, batch_size in others:
        part = fit_galaxies(sampler, model, take(photometry, rows), ids[rows], 3, batch_size, draws=20)
        for name, ours, theirs in zip(part._fields, part, whole, strict=True):
            assert ours.tobytes() == np.ascontiguousarray(theirs[rows]).tobytes(), name


def test_streams_depend_on_seed_and_identifier(sampler):
    model = toy.toy_model()
    _, photometry = toy.toy_photometry(1, seed=1)

    def one(identifier, seed):
        return fit_galaxies(sampler, model, photometry, np.array([identifier]), seed, 5, draws=20).theta

    assert not np.array_equal(one(7, 3), one(8, 3))
    assert not np.array_equal(one(7, 3), one(7, 4))


def test_keys_see_all_64_bits():
    ids = np.array([0, 1, 2**32, 2**53, 2**53 + 1, 2**62 + 5, 2**62 + 5 + 2**40, -1, -(2**63)], np.int64)
    keys = galaxy_keys(0, ids)
    assert len({tuple(key) for key in keys}) == len(ids)
    np.testing.assert_array_equal(galaxy_keys(0, ids[3:4])[0], keys[3])


def test_each_program_is_traced_once(sampler):
    model = toy.toy_model()
    batch.TRACES.clear()
    for count in (11, 3, 1):
        _, photometry = toy.toy_photometry(count, seed=count, missing=0.3)
        fit_galaxies(sampler, model, photometry, np.arange(count), 17, batch_size=4, draws=21)
    assert set(batch.TRACES.values()) == {1}, batch.TRACES


def test_progress_counts_every_galaxy(sampler):
    _, photometry = toy.toy_photometry(7, seed=0)
    state = photometry.state.copy()
    state[2] = BandState.MISSING
    seen = []
    fit = fit_galaxies(
        sampler, toy.toy_model(), photometry._replace(state=state), np.arange(7), 1, 5, seen.append, 20
    )
    assert sum(seen) == 7
    assert fit.status[2] == Status.NO_OBSERVED_BAND and fit.sampler[2] == -1
    assert np.all(np.isnan(fit.theta[2])) and not np.any(np.isnan(np.delete(fit.theta, 2, 0)))


def test_no_galaxies(sampler):
    _, photometry = toy.toy_photometry(3)
    fit = fit_galaxies(
        sampler, toy.toy_model(), take(photometry, slice(0, 0)), np.zeros(0, np.int64), 1, draws=20
    )
    assert fit.theta.shape == (0, 20, toy.SPACE.size)


BAD = {
    "NaN flux": ("flux", np.nan),
    "infinite flux": ("flux", np.inf),
    "flux beyond float32": ("flux", 1e39),
    "NaN error": ("flux_err", np.nan),
    "zero error": ("flux_err", 0.0),
    "negative error": ("flux_err", -1.0),
    "infinite error": ("flux_err", np.inf),
    "unknown state": ("state", 7),
}


@pytest.mark.parametrize("field, value", BAD.values(), ids=BAD)
def test_bad_photometry_is_flagged_and_not_fitted(field, value):
    _, photometry = toy.toy_photometry(3)
    array = np.array(getattr(photometry, field), np.int64 if field == "state" else np.float64)
    array[1, 2] = value
    status = examine(photometry._replace(**{field: array}), toy.toy_model())
    assert list(status) == [Status.OK, Status.BAD_PHOTOMETRY, Status.OK]
    if field != "state":
        state = photometry.state.copy()
        state[1, 2] = BandState.MISSING
        ignored = examine(photometry._replace(**{field: array, "state": state}), toy.toy_model())
        assert np.all(ignored == Status.OK), "a missing band may hold anything"


def test_redshifts_are_examined():
    _, photometry = toy.toy_photometry(6)
    redshift = np.array([np.nan, 0.5, 11.0, np.inf, -2.0, 0.5], np.float32)
    error = np.array([np.nan, np.nan, 0.1, 0.1, 0.1, -0.1], np.float32)
    status = examine(photometry._replace(redshift=redshift, redshift_err=error), toy.toy_model())
    bad = Status.BAD_PHOTOMETRY
    assert list(status) == [Status.OK, Status.OK, Status.OUTSIDE_EMULATOR_RANGE, bad, bad, bad]


def test_bad_galaxies_leave_the_others_untouched(sampler):
    model = toy.toy_model()
    _, photometry = toy.toy_photometry(6, seed=3)
    flux = photometry.flux.copy()
    flux[[1, 4]] = np.nan
    damaged = fit_galaxies(sampler, model, photometry._replace(flux=flux), np.arange(6), 1, 5, draws=20)
    clean = fit_galaxies(sampler, model, photometry, np.arange(6), 1, 5, draws=20)
    good = [0, 2, 3, 5]
    assert damaged.theta[good].tobytes() == clean.theta[good].tobytes()
    np.testing.assert_array_equal(damaged.status[[1, 4]], Status.BAD_PHOTOMETRY)


def test_misuse_is_refused(sampler):
    _, photometry = toy.toy_photometry(3)
    with pytest.raises(ConfigurationError, match="draws"):
        fit_galaxies(sampler, toy.toy_model(), photometry, np.arange(3), 1, draws=1000)
    with pytest.raises(ConfigurationError, match="integer identifiers"):
        fit_galaxies(sampler, toy.toy_model(), photometry, np.arange(3) * 1.0, 1, draws=20)
    with pytest.raises(ConfigurationError, match="shape"):
        fit_galaxies(sampler, toy.toy_model(), photometry, np.arange(4), 1, draws=20)
