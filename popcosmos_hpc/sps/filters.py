"""Filter curves: by name from installed packages, or from two-column files."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps.grid import package_directory

_UNITS = {"Angstrom": 1.0, "nm": 10.0, "micron": 1e4}
_BLUEST = 900.0  # Angstrom; no survey observes below the Lyman limit, but optical curves in nm would lie here


@dataclass(frozen=True)
class Filter:
    """One photon-counting bandpass.

    Args:
        name: name of the band.
        wave: (point,) observed vacuum wavelength [Angstrom], increasing.
        transmission: (point,) relative photon transmission, peak 1.
        source: where the curve came from, in words.
    """

    name: str
    wave: np.ndarray
    transmission: np.ndarray
    source: str

    @property
    def sha256(self) -> str:
        """Hash of the curve as used."""
        data = np.concatenate([self.wave, self.transmission]).astype("<f8").tobytes()
        return hashlib.sha256(data).hexdigest()

    @property
    def pivot(self) -> float:
        """Pivot wavelength [Angstrom]."""
        numerator = np.trapezoid(self.transmission * self.wave, self.wave)
        return float(np.sqrt(numerator / np.trapezoid(self.transmission / self.wave, self.wave)))


def load_filter(name: str, source: str, cut: float = 1e-3) -> Filter:
    """Load a filter.

    Args:
        name: name of the band.
        source: `sedpy:NAME`, `speclite:NAME`, `tophat:CENTRE:WIDTH` [Angstrom], or the path of a
            two-column file (wavelength [Angstrom], photon transmission), in which environment
            variables are expanded.
        cut: wings below this fraction of the peak are cut off.

    Raises:
        ConfigurationError: no such filter, or the file is no filter.
    """
    kind, _, detail = source.partition(":")
    if kind == "sedpy":
        path = package_directory("sedpy") / "data" / "filters" / f"{detail}.par"
        wave, transmission = _read_columns(path, source)
    elif kind == "speclite":
        path = package_directory("speclite") / "data" / "filters" / f"{detail}.ecsv"
        wave, transmission = _read_columns(path, source)
        wave = wave * _unit(path, source)
    elif kind == "tophat":
        centre, width = (float(value) for value in detail.split(":"))
        wave, transmission = np.linspace(centre - width / 2, centre + width / 2, 64), np.ones(64)
    else:
        path = Path(os.path.expandvars(source))
        wave, transmission = _read_columns(path, source)
        source = path.name
    loaded = _trimmed(name, wave, transmission, source, cut)
    if loaded.pivot < _BLUEST:
        raise ConfigurationError(
            f"a pivot wavelength above {_BLUEST:g} Angstrom",
            f"{loaded.pivot:.0f}",
            f"filter {source!r}",
            "Give wavelengths in Angstrom, not in nanometres.",
        )
    return loaded


def _read_columns(path: Path, source: str) -> tuple[np.ndarray, np.ndarray]:
    if not path.exists():
        raise ConfigurationError(
            "a two-column filter file",
            f"no file {path}",
            f"filter {source!r}",
            "Give its path, or set the environment variable in it.",
        )
    values = []
    for line in path.read_text().splitlines():
        fields = [field for field in line.replace(",", " ").split() if _is_number(field)]
        if len(fields) >= 2 and not line.lstrip().startswith("#"):
            values.append((float(fields[-2]), float(fields[-1])))
    if len(values) < 3:
        raise ConfigurationError("at least three rows of two numbers", f"{len(values)}", f"filter {source!r}")
    table = np.array(values)
    return table[:, 0], table[:, 1]


def _unit(path: Path, source: str) -> float:
    """Angstroms per unit of the wavelengths of an ECSV file."""
    found = re.search(r"unit: (?:!astropy\.units\.Unit \{unit: )?(\w+)", path.read_text())
    if found is None or found[1] not in _UNITS:
        named = "none" if found is None else found[1]
        raise ConfigurationError(f"wavelengths in {', '.join(_UNITS)}", named, f"filter {source!r}")
    return _UNITS[found[1]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _trimmed(name: str, wave: np.ndarray, transmission: np.ndarray, source: str, cut: float) -> Filter:
    order = np.argsort(wave, kind="stable")
    wave, index = np.unique(wave[order], return_index=True)
    transmission = np.maximum(transmission[order][index], 0.0)
    peak = transmission.max()
    if not np.isfinite(peak) or peak <= 0:
        raise ConfigurationError("a positive transmission somewhere", "none", f"filter {name!r}")
    above = np.flatnonzero(transmission >= cut * peak)
    keep = slice(max(above[0] - 1, 0), min(above[-1] + 2, len(wave)))
    return Filter(name, wave[keep], transmission[keep] / peak, source)
