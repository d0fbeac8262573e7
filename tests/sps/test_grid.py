import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps import grid


def test_wavelength_grid_puts_an_edge_on_lyman_alpha():
    wave = grid.wavelength_grid(500.0, 3e4, 500.0)
    step = np.diff(np.log(wave))
    assert np.allclose(step, 1 / 500.0)
    edges = wave * np.exp(-0.5 / 500.0)
    assert np.min(np.abs(edges / 1215.67 - 1)) < 1e-12


def test_rebin_conserves_flux_and_returns_linear_spectra_exactly():
    native = np.linspace(900.0, 20000.0, 5001)
    wave = grid.wavelength_grid(1200.0, 15000.0, 100.0)
    assert np.allclose(grid.rebin(native, 3.0 * native + 1.0, wave), 3.0 * edge_mean(wave) + 1.0, rtol=1e-10)
    spectrum = np.exp(-0.5 * ((native - 6000) / 300) ** 2)
    widths = np.diff(edges_of(wave))
    assert np.isclose(
        np.sum(grid.rebin(native, spectrum, wave) * widths), np.trapezoid(spectrum, native), rtol=1e-6
    )


def edges_of(wave):
    half = 0.5 * np.log(wave[1] / wave[0])
    return np.concatenate([wave * np.exp(-half), wave[-1:] * np.exp(half)])


def edge_mean(wave):
    edges = edges_of(wave)
    return 0.5 * (edges[1:] + edges[:-1])


def test_rebin_is_zero_outside_the_native_range():
    wave = grid.wavelength_grid(800.0, 15000.0, 50.0)
    result = grid.rebin(np.linspace(2000.0, 3000.0, 50), np.ones(50), wave)
    assert np.all(result[(wave < 1900) | (wave > 3100)] == 0)
    assert np.allclose(result[(wave > 2100) & (wave < 2900)], 1.0)


def test_age_bin_means_are_exact_for_linear_histories():
    ages = np.concatenate([[0.0], np.geomspace(1e5, 2e10, 100)])
    means = grid.age_bin_means(ages, np.stack([2.0 * ages + 5.0, np.ones_like(ages)], axis=1))
    centres = 0.5 * (grid.AGE_EDGES[1:] + grid.AGE_EDGES[:-1])
    assert np.allclose(means[:, 0], 2.0 * centres + 5.0, rtol=1e-9)
    assert np.allclose(means[:, 1], 1.0)


def test_air_to_vacuum_of_halpha():
    assert abs(grid.air_to_vacuum(np.array([6562.80]))[0] - 6564.61) < 0.05
    assert grid.air_to_vacuum(np.array([1215.67]))[0] == 1215.67


def test_surviving_mass_declines_and_keeps_remnants():
    ages = np.array([0.0, 1e6, 1e7, 1e8, 1e9, 1e10])
    living, remnants = grid.surviving_fraction(ages)
    assert np.isclose(living[0], 1.0) and remnants[0] == 0
    assert np.all(np.diff(living) <= 0) and np.all(np.diff(remnants) >= 0)
    # Kroupa: 30-45 % of the mass is returned after 10 Gyr, and a seventh of what is left are remnants.
    assert 0.55 < living[-1] + remnants[-1] < 0.7
    assert 0.08 < remnants[-1] < 0.2


def test_missing_package_is_named():
    with pytest.raises(ConfigurationError, match="no_such_package"):
        grid.package_directory("no_such_package")


def test_torus_file(tmp_path):
    path = tmp_path / "torus.dat"
    native = np.geomspace(100.0, 1e7, 200)
    rows = [f"{w:.6e} {1.0:.3e} {2.0:.3e}" for w in native]
    path.write_text("# comment\n 5.0 150.0\n" + "\n".join(rows))
    wave = grid.wavelength_grid(600.0, 3e4, 100.0)
    tau, templates = grid.torus_templates(path, wave)
    assert np.allclose(np.exp(tau), [5, 150])
    # Constant f_nu is wave^-2 in f_lambda, normalised over the whole range of the file.
    assert np.allclose(templates[0], wave**-2.0 * 100.0, rtol=0.01)
    assert len(grid.torus_templates(None, wave)[0]) == 0
