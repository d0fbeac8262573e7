import equinox as eqx
import jax
import numpy as np
import pytest
import yaml

from popcosmos_hpc.config import parse_config
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.photometry import BandState, Photometry
from popcosmos_hpc.training.calibration import Calibration, solve_zero_points
from popcosmos_hpc.training.zero_points import CalibrationSample, calibrate, zero_points_yaml
from tests import toy_run

N_GALAXIES = 150
REFERENCE = "i"


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("zcosmos")


@pytest.fixture(scope="module")
def injected(bundle):
    factors = np.exp(np.random.default_rng(4).normal(0.0, 0.08, len(bundle.bands)))
    return np.where(np.array(bundle.bands) == REFERENCE, 1.0, factors)


@pytest.fixture(scope="module")
def mock(bundle, injected) -> Photometry:
    """Galaxies of the prior at redshifts 0.2 to 1.2, with 3 percent noise and zero points off."""
    random = np.random.default_rng(5)
    emulator, prior = bundle.emulator(), bundle.prior()
    redshift = random.uniform(0.2, 1.2, N_GALAXIES).astype(np.float32)

    @eqx.filter_jit
    def fluxes(keys, redshift):
        def one(key, z):
            theta = to_physical(prior.space, prior.transport(prior.propose_base(key)[0]))
            return emulator(theta.at[prior.space.index("redshift")].set(z))

        return jax.vmap(one)(keys, redshift)

    true = np.asarray(fluxes(jax.random.split(jax.random.PRNGKey(99), N_GALAXIES), redshift))
    true = 5.0 * true / true[:, [bundle.bands.index(REFERENCE)]]
    error = 0.03 * true + 1e-3
    flux = injected * true + error * random.normal(size=true.shape)
    state = np.full(flux.shape, BandState.OBSERVED, np.int8)
    state[:40, bundle.bands.index("K")] = BandState.MISSING
    return Photometry(
        flux.astype(np.float32), error.astype(np.float32), state, redshift, np.full_like(redshift, 1e-3)
    )


def test_a_band_that_says_nothing_keeps_its_factor(bundle, mock, caplog):
    blind = mock.state.copy()
    blind[:, bundle.bands.index("NUV")] = BandState.MISSING
    few = mock._replace(state=blind)
    found = solve_zero_points(bundle.emulator(), bundle.prior(), few, REFERENCE, n_spectra=128)
    assert found.zero_points[bundle.bands.index("NUV")] == 1.0
    assert np.all(np.isfinite(found.zero_points)) and "NUV" in caplog.text
    blind[:, bundle.bands.index(REFERENCE)] = BandState.MISSING
    with pytest.raises(ConfigurationError, match="reference band"):
        solve_zero_points(bundle.emulator(), bundle.prior(), few, REFERENCE, n_spectra=128)


def test_injected_zero_points_are_recovered(bundle, mock, injected):
    found = solve_zero_points(bundle.emulator(), bundle.prior(), mock, REFERENCE, n_spectra=512)
    assert found.bands == bundle.bands and found.history.shape == (2, len(bundle.bands))
    assert found.zero_points[bundle.bands.index(REFERENCE)] == 1.0
    assert found.n_used[bundle.bands.index("K")] <= N_GALAXIES - 40
    # The error of a median is 1.25 scatter / sqrt(n): so the scatter of single galaxies follows from it.
    # With so few spectra none fits well, and half of that scatter is what the median may be off.
    single = found.zero_point_err * np.sqrt(found.n_used) / 1.25
    off = found.zero_points / injected - 1.0
    assert np.all(np.abs(off) < 0.5 * single + 1e-6), dict(zip(found.bands, off / single, strict=True))
    assert np.std(off) < 0.3 * np.std(injected)


def test_impossible_calibrations_are_refused(bundle, mock):
    emulator, prior = bundle.emulator(), bundle.prior()
    with pytest.raises(ConfigurationError, match="one of the bands NUV"):
        solve_zero_points(emulator, prior, mock, "no_such_band")
    few = Photometry(*(values[:10] for values in mock))
    with pytest.raises(ConfigurationError, match="at least 30 galaxies"):
        solve_zero_points(emulator, prior, few, REFERENCE)


FOUND = Calibration(
    ("NUV", "i"), np.array([1.2423, 1.0]), np.array([0.01, 0.002]), np.full(2, 0.1), np.array([9, 12]),
    np.ones((2, 2)),
)  # fmt: skip


def test_table_is_yaml_of_a_configuration():
    text = zero_points_yaml(FOUND, "i")
    assert yaml.safe_load(text) == {"zero_points": {"NUV": 1.2423, "i": 1.0}}
    assert "0.0100" in text and "12" in text


@pytest.fixture
def config():
    return parse_config(toy_run.settings(), "toy")


def test_sample_is_selected(config, monkeypatch):
    from popcosmos_hpc.training import zero_points

    asked = {}

    def solve(emulator, prior, photometry, reference_band, **settings):
        asked.update(photometry=photometry, bands=emulator.bands, **settings)
        return FOUND

    monkeypatch.setattr(zero_points, "solve_zero_points", solve)
    truth = toy_run.table()["truth_redshift"].to_numpy()
    ids = toy_run.table()["id"].to_numpy()
    sample = CalibrationSample("truth_redshift", "truth_redshift < 1.6", even_ids=True)
    calibrate(config, sample, "i")
    chosen = (ids % 2 == 0) & (truth < 1.6)
    np.testing.assert_array_equal(asked["photometry"].redshift, truth[chosen].astype(np.float32))
    assert asked["photometry"].flux.shape == (chosen.sum(), 6) and asked["seed"] == config.seed
    calibrate(config, CalibrationSample("truth_redshift", even_ids=False, max_galaxies=31), "i")
    assert len(asked["photometry"].redshift) == 31
    with pytest.raises(ConfigurationError, match="no_such_column"):
        calibrate(config, CalibrationSample("no_such_column"), "i")
    with pytest.raises(ConfigurationError, match="class_"):
        calibrate(config, CalibrationSample("truth_redshift", "class_ > 1"), "i")


def test_command_prints_and_writes_the_same(tmp_path):
    from click.testing import CliRunner

    from popcosmos_hpc.cli import main

    path, out = tmp_path / "run.yaml", tmp_path / "zero_points.yaml"
    path.write_text(yaml.safe_dump(toy_run.settings()))
    arguments = ["train", "zero-points", path, "--redshift-column", "truth_redshift", "--reference", "i"]
    arguments += ["--all", "--where", "truth_redshift > 0.1", "--spectra", 64, "--rounds", 1, "--out", out]
    done = CliRunner().invoke(main, [str(item) for item in arguments])
    assert done.exit_code == 0, done.output
    assert out.read_text() in done.output
    assert set(yaml.safe_load(out.read_text())["zero_points"]) == {"u", "g", "r", "i", "z", "y"}
