"""Published photometry to nanomaggies: flux units, AB magnitudes, asinh magnitudes, counts.

A nanomaggy is 3.631e-6 Jy; an object of AB magnitude 22.5 has a flux of one nanomaggy.
"""

import warnings
from typing import Any

import numpy as np
from astropy import units

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.photometry import AB_ZERO_POINT

NANOMAGGY_JY = 3.631e-6
_POGSON = 2.5 / np.log(10.0)
_MAGNITUDES = ("mag", "abmag", "mag(ab)")
_COUNTS = ("count", "counts", "ct", "adu")
_MAGGIES = {"nanomaggies": 1.0, "nanomaggy": 1.0, "nmgy": 1.0, "maggies": 1e9, "maggy": 1e9, "mgy": 1e9}


def is_magnitude(unit: str) -> bool:
    """Whether a unit string names AB magnitudes."""
    return unit.replace(" ", "").lower() in _MAGNITUDES


def is_count(unit: str) -> bool:
    """Whether a unit string names instrumental counts, which need a zero point."""
    return unit.replace(" ", "").lower() in _COUNTS


def flux_factor(unit: str, zero_point: float | None, where: str) -> float:
    """Nanomaggies per unit of a linear flux.

    Args:
        unit: `nanomaggies`, `maggies`, `count`, or what astropy parses as a spectral flux density (`nJy`,
            `uJy`).
        zero_point: AB magnitude of one count; only for counts.
        where: setting, for the message.

    Raises:
        ConfigurationError: the unit does not parse or is no flux density per frequency; or a count without
            zero point.

    >>> flux_factor("nanomaggies", None, ""), round(flux_factor("uJy", None, ""), 6)
    (1.0, 0.275406)
    """
    cure = "Use nanomaggies, maggies, nJy, uJy, mJy, Jy, ABmag, or count with a zero_point."
    if is_count(unit):
        if zero_point is None:
            raise ConfigurationError("zero_point, the AB magnitude of one count", "none", where, cure)
        return float(10.0 ** (-0.4 * (zero_point - AB_ZERO_POINT)))
    key = unit.strip().lower()
    if key in _MAGGIES:
        return _MAGGIES[key]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", units.UnitsWarning)
            in_jansky: Any = units.Unit(unit).to(units.Jy)
            return float(in_jansky / NANOMAGGY_JY)
    except (ValueError, TypeError, units.UnitConversionError) as error:
        raise ConfigurationError("a flux density per unit frequency", repr(unit), where, cure) from error


def same_unit(declared: str, found: str) -> bool:
    """Whether a unit written in a file means what the preset declares; unreadable strings count as unknown.

    >>> same_unit("uJy", "microJansky"), same_unit("uJy", "nJy"), same_unit("ABmag", "mag")
    (True, False, True)
    """
    if declared.strip().lower() == found.strip().lower():
        return True
    kinds = [(is_magnitude(text), is_count(text)) for text in (declared, found)]
    if any(map(any, kinds)):
        return kinds[0] == kinds[1]
    try:
        factors = [flux_factor(text, None, "") for text in (declared, found)]
    except ConfigurationError:
        return _unreadable(found)
    return bool(np.isclose(factors[0], factors[1], rtol=1e-6))


def _unreadable(text: str) -> bool:
    try:
        units.Unit(text)
    except ValueError:
        return True
    return False


def magnitude_to_flux(magnitude: np.ndarray, softening: float | None = None) -> np.ndarray:
    """AB magnitudes to nanomaggies.

    Args:
        magnitude: [row] AB magnitudes; asinh magnitudes if `softening` is given.
        softening: b of an asinh magnitude, as a fraction of the flux of magnitude 0 (Lupton et al. 1999).

    Returns:
        [row] nanomaggies.
    """
    if softening is None:
        return 10.0 ** (-0.4 * (magnitude - AB_ZERO_POINT))
    return 2e9 * softening * np.sinh(-magnitude / _POGSON - np.log(softening))


def magnitude_error_to_flux(
    magnitude: np.ndarray, error: np.ndarray, softening: float | None = None
) -> np.ndarray:
    """Errors of AB magnitudes to nanomaggies: flux ln(10)/2.5 error, to first order.

    Args:
        magnitude: [row] as in `magnitude_to_flux`.
        error: [row] magnitudes.
        softening: as in `magnitude_to_flux`.

    Returns:
        [row] nanomaggies.
    """
    if softening is None:
        return magnitude_to_flux(magnitude) / _POGSON * error
    return 2e9 * softening * np.cosh(-magnitude / _POGSON - np.log(softening)) / _POGSON * error
