"""What is known of a galaxy: fluxes, their states, and perhaps a redshift."""

from enum import IntEnum
from typing import Any, NamedTuple

AB_ZERO_POINT = 22.5
"""AB magnitude of one nanomaggy."""


class BandState(IntEnum):
    """State of one band of one galaxy."""

    MISSING = 0
    OBSERVED = 1
    LIMIT = 2


class Photometry(NamedTuple):
    """Photometry of one galaxy, or of many along leading axes.

    Attributes:
        flux: (*batch, band) nanomaggies; an observed flux may be negative; for a limit, the limit.
        flux_err: (*batch, band) nanomaggies; 1 sigma, also of the measurement behind a limit.
        state: (*batch, band) int8, a `BandState`.
        redshift: (*batch,) known redshift, NaN where none is known.
        redshift_err: (*batch,) its 1 sigma, NaN where none is known.
    """

    flux: Any
    flux_err: Any
    state: Any
    redshift: Any
    redshift_err: Any
