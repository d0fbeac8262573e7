"""The table a run hands to its users: one row per galaxy, with quantiles and certificate."""

# zarr declares members of a group as arrays or groups.
# pyright: reportArgumentType=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN

from popcosmos_hpc.errors import LedgerError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.photometry_store import passthrough_names, read_columns
from popcosmos_hpc.survey.posterior_store import open_partition

QUANTILE_SUFFIXES = ("q2p5", "q16", "q50", "q84", "q97p5")
REDSHIFT_QUANTILES_COLUMN = "redshift_quantiles"
_INTEGERS = {
    "n_evaluations": pa.int64(),
    "n_distinct": pa.int32(),
    "status": pa.int8(),
    "sampler": pa.int8(),
}
_ARRAYS = ("object_id", "summary", "redshift_quantiles", "certificate")
_POSITION = (SPATIAL_INDEX_COLUMN, "object_id", "ra", "dec")


def summary_table(
    run_dir: str | Path, partition: Partition, fitted: np.ndarray, facts: Mapping[str, Any]
) -> pa.Table:
    """Rows of one partition for the exported catalog, sorted by HEALPix pixel and id.

    Columns: `_healpix_29`, `object_id`, `ra`, `dec`; the passed-through columns of the input (with the
    prefix `input_` where a name is taken); per quantity `<name>_q2p5`, `_q16`, `_q50`, `_q84`, `_q97p5`;
    `redshift_quantiles`, a list; the certificate. Field metadata carry units where the store knows them.

    Args:
        run_dir: the run.
        partition: which.
        fitted: bool [galaxy]; rows outside are null in every column of the fit. If there is none, the
            partition needs no posterior store.
        facts: attributes of any posterior store of the run: quantities, units, levels.

    Raises:
        LedgerError: the photometry is missing, or the posterior belongs to other galaxies.
    """
    position = read_columns(run_dir, partition, _POSITION)
    arrays = _stored(run_dir, partition, facts, bool(fitted.any()))
    if not np.array_equal(arrays["object_id"][fitted], position["object_id"][fitted]):
        raise LedgerError(
            "the same galaxies in photometry and posterior",
            "other object ids",
            partition.key,
            "Run `popcosmos-hpc fit` to finish an interrupted commit, or fit in a new run.",
        )
    columns = _fit_columns(arrays, facts, fitted)
    names = passthrough_names(run_dir, partition)
    extra = read_columns(run_dir, partition, names)
    taken = {*columns, *_POSITION}
    carried = {f"input_{name}" if name in taken else name: pa.array(extra[name]) for name in names}
    table = pa.table({name: pa.array(position[name]) for name in _POSITION} | carried | columns)
    return _with_units(table, facts)


def _stored(run_dir: str | Path, partition: Partition, facts: Mapping, exists: bool) -> dict[str, np.ndarray]:
    if exists:
        group = open_partition(run_dir, partition)
        return {name: np.asarray(group[name][:]) for name in _ARRAYS}
    n = partition.n_galaxies
    shapes = ((), (len(facts["quantity"]), 5), (facts["redshift_levels"],), (len(facts["certificate"]),))
    return {name: np.zeros((n, *shape), np.float32) for name, shape in zip(_ARRAYS, shapes, strict=True)}


def _fit_columns(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], fitted: np.ndarray) -> dict:
    unfitted = ~fitted
    columns = {}
    for index, name in enumerate(facts["quantity"]):
        for level, suffix in enumerate(QUANTILE_SUFFIXES):
            columns[f"{name}_{suffix}"] = pa.array(arrays["summary"][:, index, level], mask=unfitted)
    columns[REDSHIFT_QUANTILES_COLUMN] = _list_column(arrays["redshift_quantiles"], unfitted)
    for index, name in enumerate(facts["certificate"]):
        values = arrays["certificate"][:, index]
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


def _with_units(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    units = {"ra": "deg", "dec": "deg"}
    for name, unit in zip(facts["quantity"], facts.get("quantity_unit", ()), strict=False):
        units |= {f"{name}_{suffix}": unit for suffix in QUANTILE_SUFFIXES if unit}
    fields = [
        field.with_metadata({"unit": units[field.name]}) if field.name in units else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))
