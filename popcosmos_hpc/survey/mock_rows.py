"""Rows of a mock catalog: canonical photometry with positions, identifiers and truth."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN

from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.footprint import sky_coordinates

_FIRST_ID = 2**53 + 1  # beyond what a double can tell apart, as real identifiers are
_ID_STEP = 3


class MockRows(NamedTuple):
    """Consecutive galaxies of a mock catalog.

    Attributes:
        index: (galaxy,) int64 numbers of the galaxies.
        healpix_29: (galaxy,) int64 positions.
        flux: (galaxy, band) noisy fluxes [nanomaggies].
        flux_err: (galaxy, band) 1-sigma errors [nanomaggies].
        state: (galaxy, band) int8 `BandState`.
        true_flux: (galaxy, band) noiseless fluxes [nanomaggies].
        truth: (galaxy, quantity) parameters and derived quantities.
    """

    index: np.ndarray
    healpix_29: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    state: np.ndarray
    true_flux: np.ndarray
    truth: np.ndarray


def object_ids(index: np.ndarray) -> np.ndarray:
    """Identifiers (galaxy,) int64 of galaxies by their numbers."""
    return _FIRST_ID + _ID_STEP * index.astype(np.int64)


def mock_schema(bands: tuple[str, ...], truth: dict[str, str]) -> pa.Schema:
    """Columns of a mock catalog: those of canonical photometry, and the truth.

    Args:
        bands: band names.
        truth: unit by name of each parameter and derived quantity, in order.
    """
    nanomaggies = {"unit": "nanomaggy"}
    fields = [pa.field(SPATIAL_INDEX_COLUMN, pa.int64()), pa.field("object_id", pa.int64())]
    fields += [pa.field(name, pa.float64(), metadata={"unit": "deg"}) for name in ("ra", "dec")]
    for band in bands:
        fields += [pa.field(f"{k}_{band}", pa.float32(), metadata=nanomaggies) for k in ("flux", "flux_err")]
        fields.append(pa.field(f"state_{band}", pa.int8()))
    fields += [pa.field(name, pa.float32()) for name in ("redshift", "redshift_err")]
    for name, unit in truth.items():
        fields.append(pa.field(f"truth_{name}", pa.float32(), metadata={"unit": unit} if unit else None))
    fields += [pa.field(f"truth_flux_{band}", pa.float32(), metadata=nanomaggies) for band in bands]
    return pa.schema(fields)


def mock_table(rows: MockRows, bands: tuple[str, ...], truth: dict[str, str]) -> pa.Table:
    """Rows as a table; fluxes of missing bands are NaN, and no redshift is known.

    Args:
        rows: the galaxies.
        bands: band names.
        truth: as for `mock_schema`.
    """
    ra, dec = sky_coordinates(rows.healpix_29)
    unknown = np.full(len(rows.index), np.nan, np.float32)
    columns: dict[str, np.ndarray] = {
        SPATIAL_INDEX_COLUMN: rows.healpix_29,
        "object_id": object_ids(rows.index),
        "ra": ra,
        "dec": dec,
        "redshift": unknown,
        "redshift_err": unknown,
    }
    for number, band in enumerate(bands):
        missing = rows.state[:, number] == BandState.MISSING
        columns[f"flux_{band}"] = np.where(missing, np.float32(np.nan), rows.flux[:, number])
        columns[f"flux_err_{band}"] = np.where(missing, np.float32(np.nan), rows.flux_err[:, number])
        columns[f"state_{band}"] = rows.state[:, number]
        columns[f"truth_flux_{band}"] = rows.true_flux[:, number]
    columns |= {f"truth_{name}": rows.truth[:, number] for number, name in enumerate(truth)}
    schema = mock_schema(bands, truth)
    arrays = [pa.array(np.ascontiguousarray(columns[field.name]), field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
