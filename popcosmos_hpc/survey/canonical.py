"""A table as published to canonical rows, and the rows refused on the way with their reasons.

Everything is vectorised over rows, and no row raises. A row is refused only if it cannot be placed or named:
no usable coordinates, no usable id, or outside the preset's selection. A galaxy with bad fluxes or without
any observed band is kept; its fit is flagged.
"""

# pyarrow makes its compute functions when it is imported; type checkers do not see them.
# pyright: reportAttributeAccessIssue=false

import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey import expression, fluxes
from popcosmos_hpc.survey.preset import Band, SurveyPreset

REJECT_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("object_id", pa.string()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("reason", pa.string()),
    ]
)
NOT_SELECTED = "outside the preset's quality selection"
BAD_ID = "id is missing or no exact 64-bit integer"
BAD_COORDINATE = "right ascension or declination is missing or out of range"
DUPLICATED_ID = "id appeared before"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|[iI]nf(inity)?|[nN]a[nN])\s*$"
_INTEGER = r"^\s*[+-]?\d{1,19}\s*$"
_EXACT_FLOAT_INTEGER = 2.0**53


class Canonical(NamedTuple):
    """Outcome of one chunk of a table.

    Attributes:
        table: canonical rows, columns as `canonical_schema` says.
        row: int64 [kept row] index of each canonical row in the input chunk.
        rejects: refused rows, `REJECT_SCHEMA` (file is empty, row counts within the chunk).
    """

    table: pa.Table
    row: np.ndarray
    rejects: pa.Table


def canonical_schema(preset: SurveyPreset) -> pa.Schema:
    """Columns of canonical rows; fixed by the preset, never inferred from data."""
    fields = [("object_id", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64())]
    for name in preset.band_names:
        fields += [
            (f"flux_{name}", pa.float32()),
            (f"flux_err_{name}", pa.float32()),
            (f"state_{name}", pa.int8()),
        ]
    fields += [("redshift", pa.float32()), ("redshift_err", pa.float32())]
    fields += [(item.name, pa.type_for_alias(item.type)) for item in preset.passthrough]
    return pa.schema(fields)


def canonicalise(preset: SurveyPreset, table: pa.Table) -> Canonical:
    """Map a chunk of a published table to canonical rows.

    Args:
        preset: the meaning of the columns.
        table: at least the preset's columns; extra columns are ignored.

    Returns:
        canonical rows, their positions, and refused rows.
    """
    identifier, id_known = _identifier(preset, table)
    ra, dec = (numbers(table[name]) for name in (preset.ra, preset.dec))
    placed = np.isfinite(ra) & np.isfinite(dec) & (ra >= -360.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    selected = select_rows(preset.quality, table)
    # The selection comes first: a row the user did not ask for is no defect of the table.
    reasons = np.select([~selected, ~id_known, ~placed], [NOT_SELECTED, BAD_ID, BAD_COORDINATE], default="")
    keep = reasons == ""
    columns: dict[str, np.ndarray | pa.Array] = {
        "object_id": identifier[keep],
        "ra": _wrap(ra[keep]),
        "dec": dec[keep],
    }
    kept = table.filter(pa.array(keep)) if not keep.all() else table
    for band in preset.bands:
        flux, error, state = band_photometry(preset, band, kept)
        columns |= {f"flux_{band.name}": flux, f"flux_err_{band.name}": error, f"state_{band.name}": state}
    columns["redshift"], columns["redshift_err"] = _known_redshift(preset, kept)
    for item in preset.passthrough:
        columns[item.name] = _cast(kept[item.column], pa.type_for_alias(item.type))
    schema = canonical_schema(preset)
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    rejects = _rejects(table[preset.id.column], ra, dec, reasons, ~keep)
    return Canonical(pa.Table.from_arrays(arrays, schema=schema), np.flatnonzero(keep), rejects)


def _wrap(ra: np.ndarray) -> np.ndarray:
    wrapped = np.mod(ra, 360.0)
    return np.where(wrapped == 360.0, 0.0, wrapped)  # the modulus of a tiny negative angle rounds up


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as float64 [row]; what is null or no number becomes NaN."""
    return _cast(column, pa.float64()).to_numpy(zero_copy_only=False)


def band_photometry(
    preset: SurveyPreset, band: Band, table: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One band of a table.

    A value or error that is null, NaN or a missing code makes the band missing, and so does a bad flag. A
    non-detection code makes it a limit where a limit is known. Anything else is observed, also negative
    fluxes and also a value with an infinite or non-positive error, unless the preset says `bad_errors:
    missing`.

    Returns:
        flux [row] and flux_err [row] float32 nanomaggies (NaN where missing), state [row] int8.
    """
    value, error = numbers(table[band.value]), numbers(table[band.err])
    codes = preset.missing_values if band.missing_values is None else band.missing_values
    lost = preset.nondetection_values if band.nondetection_values is None else band.nondetection_values
    undetected = _is_code(value, lost)
    missing = np.isnan(value) | _is_code(value, codes)
    missing |= ~undetected & (np.isnan(error) | _is_code(error, codes))
    if band.flag is not None:
        missing |= ~np.isin(numbers(table[band.flag]), band.flag_ok)
    flux, flux_err = _to_flux(preset, band, value, error)
    limit, limit_err = _limits(preset, band, table, flux_err, codes)
    flux, flux_err = np.where(undetected, limit, flux), np.where(undetected, limit_err, flux_err)
    dimming = _transmission(preset, band, table)
    with np.errstate(over="ignore"):
        flux, flux_err = (flux * dimming).astype(np.float32), (flux_err * dimming).astype(np.float32)
    unusable = ~(np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0))
    missing |= unusable & (undetected | (preset.bad_errors == "missing"))
    state = np.select(
        [missing, undetected], [BandState.MISSING, BandState.LIMIT], default=BandState.OBSERVED
    ).astype(np.int8)
    unknown = np.float32(np.nan)
    return np.where(missing, unknown, flux), np.where(missing, unknown, flux_err), state


def _to_flux(preset, band, value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if band.flux is not None:
        factor = fluxes.flux_factor(preset.unit_of(band), band.zero_point, f"band {band.name}")
        return value * factor, error * factor
    with np.errstate(over="ignore", invalid="ignore"):
        magnitude = value + band.ab_offset
        return (
            fluxes.magnitude_to_flux(magnitude, band.softening),
            fluxes.magnitude_error_to_flux(magnitude, error, band.softening),
        )


def _limits(preset, band, table: pa.Table, flux_err: np.ndarray, codes) -> tuple[np.ndarray, np.ndarray]:
    if band.limit is not None:
        stated = numbers(table[band.limit])
        stated = np.where(_is_code(stated, codes), np.nan, stated)
        limit, _ = _to_flux(preset, band, stated, np.zeros(table.num_rows))
        return limit, limit / band.limit_sigma
    if band.flux is not None:
        return band.limit_sigma * flux_err, flux_err
    # An error beside a non-detected magnitude is no flux error, so there is no limit to be had.
    return np.full(table.num_rows, np.nan), np.full(table.num_rows, np.nan)


def _transmission(preset, band, table: pa.Table) -> np.ndarray | float:
    if band.extinction is None:
        return 1.0
    if band.extinction.column is not None:
        return 10.0 ** (0.4 * numbers(table[band.extinction.column]))
    return 10.0 ** (0.4 * band.extinction.coefficient * numbers(table[band.extinction.ebv or preset.ebv]))


def _is_code(values: np.ndarray, codes: tuple[float, ...]) -> np.ndarray:
    # Codes such as -99.9 arrive as float32 as often as not.
    matches = [np.isclose(values, code, rtol=1e-6, atol=0.0) for code in codes]
    return np.logical_or.reduce(matches) if matches else np.zeros(len(values), bool)


def count_states(table: pa.Table) -> np.ndarray:
    """Canonical rows per band: missing, observed, limits, and observed with an unusable flux or error.

    Returns:
        int64 [band, 4].
    """
    counts = []
    for name in table.column_names:
        if name.startswith("state_"):
            band = name.removeprefix("state_")
            state, flux, error = (table[f"{k}_{band}"].to_numpy() for k in ("state", "flux", "flux_err"))
            bad = (state == BandState.OBSERVED) & ~(np.isfinite(flux) & np.isfinite(error) & (error > 0))
            counts.append([*(np.sum(state == code) for code in BandState), np.sum(bad)])
    return np.array(counts)


def _known_redshift(preset, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    if preset.redshift is None:
        unknown = np.full(table.num_rows, np.nan, np.float32)
        return unknown, unknown
    redshift = numbers(table[preset.redshift.column])
    stated = preset.redshift.err
    error = numbers(table[stated]) if isinstance(stated, str) else np.full(table.num_rows, float(stated))
    known = np.isfinite(redshift) & (redshift >= 0) & ~_is_code(redshift, preset.missing_values)
    known &= select_rows(preset.redshift.quality, table)
    # The likelihood floors the error, so an unusable one counts as zero.
    error = np.where(np.isfinite(error) & (error > 0), error, 0.0)
    return (
        np.where(known, redshift, np.nan).astype(np.float32),
        np.where(known, error, np.nan).astype(np.float32),
    )


def select_rows(text: str | None, table: pa.Table) -> np.ndarray:
    """Rows [row] of which an expression over columns is true; all rows if there is no expression."""
    if text is None:
        return np.ones(table.num_rows, bool)
    columns = {name: _masked(table[name]) for name in expression.column_names(text)}
    return expression.select(text, columns, table.num_rows)


def _masked(column: pa.ChunkedArray) -> np.ma.MaskedArray:
    null = pc.is_null(column, nan_is_null=True).to_numpy()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parsed = _cast(column, pa.float64())
        if pc.sum(pc.is_valid(parsed)).as_py() == np.sum(~null):
            return np.ma.array(parsed.to_numpy(zero_copy_only=False), mask=null)
        return np.ma.array(np.array(pc.fill_null(column, "").to_pylist(), dtype=str), mask=null)
    default = False if pa.types.is_boolean(kind) else 0
    return np.ma.array(pc.fill_null(column, pa.scalar(default, kind)).to_numpy(), mask=null)


def _cast(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast, nulling what does not convert instead of raising."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.type == kind:
        return array
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if text and pa.types.is_boolean(kind):
        return pc.index_in(pc.utf8_lower(pc.utf8_trim_whitespace(array)), pa.array(["false", "true"])).cast(
            kind
        )
    if text and not pa.types.is_string(kind):
        pattern = _INTEGER if pa.types.is_integer(kind) else _NUMBER
        good = pc.fill_null(pc.match_substring_regex(array, pattern), False)
        array = pc.if_else(
            good, pc.utf8_ltrim(pc.utf8_trim_whitespace(array), "+"), pa.scalar(None, array.type)
        )
    try:
        return array.cast(kind)
    except pa.ArrowInvalid:
        return _cast_row_by_row(array, kind)


def _cast_row_by_row(array: pa.Array, kind: pa.DataType) -> pa.Array:
    def one(value):
        try:
            return pa.scalar(value, array.type).cast(kind).as_py()
        except pa.ArrowInvalid:
            return None

    return pa.array([None if value is None else one(value) for value in array.to_pylist()], type=kind)


def _identifier(preset, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    column = table[preset.id.column]
    if preset.id.hash:
        text = _cast(column, pa.string())
        known = pc.is_valid(text).to_numpy(zero_copy_only=False)
        return np.array([_fold(value) for value in text.to_pylist()], np.int64), known
    if pa.types.is_floating(column.type):
        # Beyond 2^53 neighbouring integers share a float: such an id names nobody.
        value = numbers(column)
        known = np.isfinite(value) & (np.abs(value) < _EXACT_FLOAT_INTEGER) & (np.mod(value, 1.0) == 0.0)
        return np.where(known, value, 0.0).astype(np.int64), known
    exact = _cast(column, pa.int64())
    known = pc.is_valid(exact).to_numpy(zero_copy_only=False)
    return pc.fill_null(exact, 0).to_numpy(zero_copy_only=False), known


def _fold(text: str | None) -> int:
    digest = hashlib.blake2b((text or "").strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _rejects(identifier: pa.ChunkedArray, ra, dec, reasons: np.ndarray, refused: np.ndarray) -> pa.Table:
    row = np.flatnonzero(refused)
    text = _cast(identifier.take(pa.array(row)), pa.string())
    arrays = [
        pa.array([""] * len(row)),
        pa.array(row),
        text,
        pa.array(ra[row]),
        pa.array(dec[row]),
        pa.array(reasons[row].tolist(), pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=REJECT_SCHEMA)
