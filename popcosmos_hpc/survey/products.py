"""The table a run hands to its users: one row per galaxy, with quantiles and certificate."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN

from popcosmos_hpc.errors import LedgerError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.photometry_store import passthrough_names, read_columns
from popcosmos_hpc.survey.posterior_store import CERTIFICATE, open_partition

QUANTILE_SUFFIXES = ("q2p5", "q16", "q50", "q84", "q97p5")
REDSHIFT_QUANTILES_COLUMN = "redshift_quantiles"
_INTEGERS = {"n_evaluations": pa.int64(), "status": pa.int8(), "sampler": pa.int8()}
_POSITION = (SPATIAL_INDEX_COLUMN, "object_id", "ra", "dec")


def summary_table(run_dir: str | Path, partition: Partition, fitted: np.ndarray | None = None) -> pa.Table:
    """Rows of one partition for the exported catalog, sorted by HEALPix pixel and id.

    Columns: `_healpix_29`, `object_id`, `ra`, `dec`; the passed-through columns of the input (with the prefix
    `input_` where a name is taken); per quantity `<name>_q2p5`, `_q16`, `_q50`, `_q84`, `_q97p5`;
    `redshift_quantiles`, a list; the certificate. Field metadata carry units where the store knows them.

    Args:
        run_dir: the run.
        partition: which.
        fitted: bool [galaxy]; rows outside are null in every column of the fit. Default: rows whose object id
            is in the posterior store.

    Raises:
        LedgerError: the photometry is missing, or the posterior belongs to other galaxies.
    """
    position = read_columns(run_dir, partition, _POSITION)
    group = open_partition(run_dir, partition)
    stored = np.asarray(group["object_id"][:])
    fitted = stored >= 0 if fitted is None else np.asarray(fitted, bool)
    if not np.array_equal(stored[fitted], position["object_id"][fitted]):
        raise LedgerError(
            "the same galaxies in photometry and posterior",
            "other object ids",
            partition.key,
            "The run directory is mixed from two runs: fit in a new one.",
        )
    columns = _fit_columns(group, fitted)
    names = passthrough_names(run_dir, partition)
    extra = read_columns(run_dir, partition, names)
    taken = {*columns, *_POSITION}
    carried = {f"input_{name}" if name in taken else name: pa.array(extra[name]) for name in names}
    table = pa.table({name: pa.array(position[name]) for name in _POSITION} | carried | columns)
    return _with_units(table, dict(group.attrs))


def _fit_columns(group, fitted: np.ndarray) -> dict[str, pa.Array]:
    unfitted = ~fitted
    columns = {}
    summary = np.asarray(group["summary"][:])
    for index, name in enumerate(group.attrs["quantity"]):
        for level, suffix in enumerate(QUANTILE_SUFFIXES):
            columns[f"{name}_{suffix}"] = pa.array(summary[:, index, level], mask=unfitted)
    columns[REDSHIFT_QUANTILES_COLUMN] = _list_column(np.asarray(group["redshift_quantiles"][:]), unfitted)
    certificate = np.asarray(group["certificate"][:])
    for index, name in enumerate(CERTIFICATE):
        values = certificate[:, index]
        if name in _INTEGERS:
            known = fitted & np.isfinite(values)
            values = np.where(known, values, 0).astype(np.int64)
            columns[name] = pa.array(values, _INTEGERS[name], mask=~known)
        else:
            columns[name] = pa.array(values, mask=unfitted)
    return columns


def _list_column(values: np.ndarray, null: np.ndarray) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(null))


def _with_units(table: pa.Table, facts: dict) -> pa.Table:
    units = {"ra": "deg", "dec": "deg"}
    for name, unit in zip(facts["quantity"], facts.get("summary_units", ()), strict=False):
        units |= {f"{name}_{suffix}": unit for suffix in QUANTILE_SUFFIXES if unit}
    fields = [
        field.with_metadata({"unit": units[field.name]}) if field.name in units else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))
