"""Loader of SSPs from FSPS (Conroy et al. 2009, 2010), where python-fsps and its data are present."""

import os
from pathlib import Path

import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps.grid import GridSet, ssp_from_spectra, torus_templates
from popcosmos_hpc.sps.load_bagpipes import load_surroundings


def load_fsps(wave: np.ndarray, torus_file: Path | None = None) -> GridSet:
    """Compute the stellar grid of the installed FSPS once; nebulae and dust as for other stars.

    Chabrier IMF; the isochrones and library are those FSPS was compiled with and are recorded in
    the provenance. pop-cosmos used FSPS 3.2 with MIST and MILES.

    Args:
        wave: (wave,) target axis [Angstrom].
        torus_file: AGN torus templates.

    Raises:
        ConfigurationError: SPS_HOME is not set, or python-fsps is not installed.
    """
    if "SPS_HOME" not in os.environ:
        raise ConfigurationError(
            "SPS_HOME to name the FSPS data tree",
            "no such variable",
            "SPS grids",
            "Set it, or use synthesis.backend: bagpipes.",
        )
    try:
        import fsps
    except ImportError as error:
        raise ConfigurationError("python-fsps", str(error), "SPS grids", "pip install fsps") from error
    population = fsps.StellarPopulation(zcontinuous=0, sfh=0, imf_type=1, add_neb_emission=False)
    spectra, left = [], []
    for index in range(len(population.zlegend)):
        native, one = population.get_spectrum(zmet=index + 1, tage=0.0, peraa=True)
        spectra.append(np.concatenate([one[:1], one]))
        mass = np.asarray(population.stellar_mass)
        left.append(np.concatenate([[1.0], mass]))
    ages = np.concatenate([[0.0], 10.0 ** np.asarray(population.log_age)])
    stars = ssp_from_spectra(
        np.asarray(native, float),
        ages,
        np.asarray(population.zlegend, float),
        np.array(spectra),
        np.array(left),
        wave,
    )
    nebulae, dust, files = load_surroundings(wave, torus_file)
    libraries = ", ".join(
        item.decode() if isinstance(item, bytes) else str(item) for item in population.libraries
    )
    provenance = {
        "backend": f"FSPS ({libraries}); Cloudy nebulae and DL07 dust of the bagpipes data files",
        "files": files,
        "citations": ["Conroy, Gunn & White 2009", "Conroy & Gunn 2010", "Ferland et al. 2017 (Cloudy)"],
    }
    return GridSet(stars, nebulae, dust, *torus_templates(torus_file, wave), provenance)
