"""Fluxes and errors of a survey's table, as an uncertainty model learns them: complete rows, all counted.

The errors of all bands are learned together, so a row counts only if every band is observed. Rows that lack a
band are left out and counted; what they would have told of their other bands is lost. Where many galaxies
lack a band, train a model of the other bands beside it.
"""

import logging
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey import expression
from popcosmos_hpc.survey.canonical import canonicalise, numbers, select_rows
from popcosmos_hpc.survey.preset import load_preset
from popcosmos_hpc.survey.readers import table_reader
from popcosmos_hpc.training.noise_recipe import TableSource, input_file

logger = logging.getLogger(__name__)

_CHUNK = 200_000
_POGSON = 2.5 / np.log(10.0)


class ErrorRows(NamedTuple):
    """Complete rows of a table.

    Attributes:
        bands: their bands.
        flux: (row, band) [nanomaggies].
        flux_err: (row, band) [nanomaggies], positive.
        counts: what became of the table's rows: `read`, `not_selected`, `incomplete`, `used`, and under
            `missing` how many of the selected rows lack each band.
    """

    bands: tuple[str, ...]
    flux: np.ndarray
    flux_err: np.ndarray
    counts: dict


def read_errors(source: TableSource, seed: int) -> ErrorRows:
    """Complete rows of a survey's table.

    Args:
        source: table, preset and bands.
        seed: of the draws that undo the rounding of errors.

    Raises:
        ConfigurationError: a file or band is unknown.
        SchemaError: the table lacks a column or cannot be read.
        TrainingError: no row has all the bands.
    """
    read = _read_plain if source.preset is None else _read_preset
    bands, flux, flux_err, n_read = read(source)
    good = np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0)
    complete = good.all(axis=1)
    counts = {
        "read": n_read,
        "not_selected": n_read - len(flux),
        "incomplete": int(np.sum(~complete)),
        "used": int(np.sum(complete)),
        "missing": {band: int(count) for band, count in zip(bands, np.sum(~good, axis=0), strict=True)},
    }
    logger.info("%s: %s", source.path, counts)
    if not complete.any():
        raise TrainingError(
            f"rows that are observed in all of {', '.join(bands)}",
            f"none among {len(flux)} selected ones; missing: {counts['missing']}",
            source.path,
            "Leave out the band that most rows lack, or correct the preset.",
        )
    flux, flux_err = flux[complete], flux_err[complete]
    return ErrorRows(bands, flux, _unrounded(flux, flux_err, source.error_step, seed), counts)


def _read_plain(source: TableSource) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, int]:
    """Bands, fluxes and errors (row, band) of the selected rows, and how many were read."""
    bands, path = tuple(source.bands or ()), input_file(source.path)
    columns = [f"{kind}_{band}" for kind in ("flux", "flux_err") for band in bands]
    wanted = tuple(dict.fromkeys([*columns, *expression.column_names(source.where or "True", "where")]))
    reader = table_reader(path)
    if missing := [name for name in wanted if name not in reader.columns(path)]:
        raise ConfigurationError("columns of the table", ", ".join(missing), str(path), "Name a preset.")
    table = pa.concat_tables([chunk.table for chunk in reader.chunks(path, wanted, _CHUNK)])
    chosen = table.filter(pa.array(select_rows(source.where, table)))
    flux, flux_err = (
        np.stack([numbers(chosen[f"{kind}_{band}"]) for band in bands], axis=1)
        for kind in ("flux", "flux_err")
    )
    return bands, flux, flux_err, table.num_rows


def _read_preset(source: TableSource) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, int]:
    """As `_read_plain`, through a preset; what is no observed flux is NaN."""
    preset, path = load_preset(str(source.preset)), input_file(source.path)
    bands = tuple(source.bands or preset.band_names)
    if strange := [band for band in bands if band not in preset.band_names]:
        raise ConfigurationError(
            f"bands of the preset: {', '.join(preset.band_names)}",
            ", ".join(strange),
            "source.bands",
            "Correct them, or the preset.",
        )
    reader = table_reader(path, preset.hdf5_group, preset.fits_hdu)
    found = reader.columns(path)
    preset = preset.resolve(found)
    preset.check_table(found, str(path))
    extra = expression.column_names(source.where or "True", "where")
    wanted = tuple(
        dict.fromkeys([*preset.required_columns(), *(i.column for i in preset.passthrough), *extra])
    )
    parts, n_read = [], 0
    for chunk in reader.chunks(path, wanted, _CHUNK):
        n_read += chunk.table.num_rows
        chosen = chunk.table.filter(pa.array(select_rows(source.where, chunk.table)))
        parts.append(canonicalise(preset, chosen).table)
    table = pa.concat_tables(parts)
    flux, flux_err, state = (
        np.stack([table[f"{kind}_{band}"].to_numpy() for band in bands], axis=1)
        for kind in ("flux", "flux_err", "state")
    )
    observed = state == BandState.OBSERVED
    flux, flux_err = (np.where(observed, part, np.nan).astype(np.float64) for part in (flux, flux_err))
    return bands, flux, flux_err, n_read


def _unrounded(flux: np.ndarray, flux_err: np.ndarray, step: float, seed: int) -> np.ndarray:
    """Errors whose rounding, in magnitudes, is undone by a uniform draw; never below half a step."""
    if step == 0.0:
        return flux_err
    rng = np.random.default_rng([seed, 11])
    stated = _POGSON * flux_err / np.abs(flux)
    drawn = stated + step * (rng.random(flux.shape) - 0.5)
    return flux_err * np.maximum(drawn, 0.5 * step) / stated
