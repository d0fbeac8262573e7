"""Canonical photometry of a run: one Zarr group per partition, in the order that blocks count rows."""

# zarr declares members of a group as arrays or groups, and attributes as any JSON.
# pyright: reportArgumentType=false, reportCallIssue=false

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import zarr
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN
from zarr.codecs import BloscCodec

from popcosmos_hpc.errors import LedgerError, SchemaError
from popcosmos_hpc.partition import Block, Partition
from popcosmos_hpc.photometry import BandState, Photometry
from popcosmos_hpc.survey.catalog import SourceCatalog
from popcosmos_hpc.survey.files import sync, sync_tree
from popcosmos_hpc.survey.plan import Plan, pixel_range
from popcosmos_hpc.survey.preset import SurveyPreset

SCHEMA_VERSION = 1
_CHUNK_ROWS = 8192
_PHOTOMETRY = ("flux", "flux_err", "state")
_ROWS = ("object_id", "ra", "dec", SPATIAL_INDEX_COLUMN, "redshift", "redshift_err")


def store_path(run_dir: str | Path, partition: Partition) -> Path:
    """Folder of a partition's photometry."""
    return Path(run_dir) / "photometry" / f"{partition.key}.zarr"


def remove_photometry(run_dir: str | Path) -> None:
    """Delete the photometry of all partitions of a run; other files in its folder stay."""
    for path in (Path(run_dir) / "photometry").glob("Norder=*/Dir=*/Npix=*.zarr"):
        shutil.rmtree(path)


def write_photometry(
    run_dir: str | Path, catalog_path: str | Path, plan: Plan, preset: SurveyPreset | None = None
) -> int:
    """Write the photometry of every partition that has none yet; returns how many were written.

    Args:
        run_dir: the run.
        catalog_path: HATS catalog, canonical or as it is.
        plan: partitions, of the same catalog.
        preset: meaning of the columns of a catalog that is not canonical.

    Raises:
        SchemaError: the catalog does not hold the rows that the plan counted.
    """
    catalog = SourceCatalog(catalog_path, preset)
    written = 0
    for partition in plan.partitions:
        if not (store_path(run_dir, partition) / "zarr.json").is_file():
            table, _ = catalog.read(*pixel_range(partition))
            write_partition(run_dir, partition, table)
            written += 1
    return written


def write_partition(run_dir: str | Path, partition: Partition, table: pa.Table) -> Path:
    """Write one partition's rows; all of it appears at once, and what exists already is kept.

    Args:
        run_dir: the run.
        partition: where the rows lie.
        table: canonical rows with `_healpix_29`, in any order.

    Raises:
        SchemaError: the number of rows is not the partition's.
    """
    destination = store_path(run_dir, partition)
    if table.num_rows != partition.n_galaxies:
        raise SchemaError(
            f"{partition.n_galaxies} rows",
            f"{table.num_rows}",
            partition.key,
            "The catalog changed after the plan was made: plan again in a new run.",
        )
    if (destination / "zarr.json").is_file():
        return destination
    table = table.sort_by([(SPATIAL_INDEX_COLUMN, "ascending"), ("object_id", "ascending")])
    scratch = Path(run_dir) / "scratch" / f"photometry-{uuid.uuid4().hex}"
    try:
        _write_group(scratch, table)
        sync_tree(scratch)
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(destination)
        except OSError:
            # Another process wrote the same rows first; the same rows are the same bytes.
            if not (destination / "zarr.json").is_file():
                raise
        sync(destination.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return destination


def _write_group(path: Path, table: pa.Table) -> None:
    bands = [name.removeprefix("state_") for name in table.column_names if name.startswith("state_")]
    group = zarr.create_group(path, zarr_format=3)
    for kind in _PHOTOMETRY:
        columns = [table[f"{kind}_{band}"].to_numpy() for band in bands]
        _write_array(group, kind, np.stack(columns, axis=1), ("galaxy", "band"))
    for name in _ROWS:
        _write_array(group, name, table[name].to_numpy(), ("galaxy",))
    photometric = {f"{kind}_{band}" for kind in _PHOTOMETRY for band in bands}
    extra = [name for name in table.column_names if name not in photometric and name not in _ROWS]
    kinds = {name: _write_extra(group, name, table[name]) for name in extra}
    group.attrs.update(
        {
            "schema_version": SCHEMA_VERSION,
            "n_galaxies": table.num_rows,
            "bands": bands,
            "unit": "nanomaggies",
            "state": {state.name.lower(): int(state) for state in BandState},
            "passthrough": kinds,
        }
    )


def _write_extra(group: zarr.Group, name: str, column: pa.ChunkedArray) -> str:
    """Text has no stable type in Zarr 3, so it is kept as UTF-8 bytes; integer nulls become NaN."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        data = np.array([(text or "").encode() for text in column.to_pylist()], dtype="S")
        width = max(data.dtype.itemsize, 1)
        data = np.frombuffer(data.astype(f"S{width}").tobytes(), np.uint8).reshape(len(data), width)
        _write_array(group, f"passthrough/{name}", data, ("galaxy", "byte"))
        return "string"
    if column.null_count or pa.types.is_floating(column.type):
        column = column.cast(pa.float32() if pa.types.is_float32(column.type) else pa.float64())
    _write_array(group, f"passthrough/{name}", column.to_numpy(), ("galaxy",))
    return str(column.type)


def _write_array(group: zarr.Group, name: str, data: np.ndarray, dimensions: tuple[str, ...]) -> None:
    chunks = (min(len(data), _CHUNK_ROWS), *data.shape[1:])
    shards = (-(-len(data) // chunks[0]) * chunks[0], *data.shape[1:])
    group.create_array(
        name,
        data=data,
        chunks=chunks,
        shards=shards,
        dimension_names=dimensions,
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        config={"write_empty_chunks": True},
    )


def open_photometry(run_dir: str | Path, partition: Partition) -> zarr.Group:
    """The Zarr group of a partition, read-only.

    Raises:
        LedgerError: it was not written.
    """
    path = store_path(run_dir, partition)
    if not (path / "zarr.json").is_file():
        raise LedgerError("photometry of the partition", "none", str(path), "Run `popcosmos-hpc plan` again.")
    return zarr.open_group(path, mode="r", zarr_format=3)


def read_block(
    run_dir: str | Path, block: Block, bands: Iterable[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Photometry]:
    """Ids, coordinates and photometry of one block.

    Args:
        run_dir: the run.
        block: rows to read.
        bands: bands in the order wanted; default all.

    Returns:
        object_id int64 [galaxy], ra and dec float64 [galaxy] degrees, Photometry of float32 [galaxy, band]
        arrays; a missing band has flux 0 and error 1, so that arithmetic on it stays finite.

    Raises:
        SchemaError: a band is not in the store.
    """
    group = open_photometry(run_dir, block.partition)
    rows = slice(block.start, block.stop)
    wanted = band_indices(group, bands, block.partition.key)
    flux, error, state = (np.asarray(group[name][rows])[:, wanted] for name in _PHOTOMETRY)
    missing = state == BandState.MISSING
    photometry = Photometry(
        np.where(missing, np.float32(0), flux),
        np.where(missing, np.float32(1), error),
        state,
        np.asarray(group["redshift"][rows]),
        np.asarray(group["redshift_err"][rows]),
    )
    object_id, ra, dec = (np.asarray(group[name][rows]) for name in ("object_id", "ra", "dec"))
    return object_id, ra, dec, photometry


def band_indices(group: zarr.Group, bands: Iterable[str] | None, where: str) -> list[int]:
    """Positions of bands in a photometry group; raises SchemaError if one is absent."""
    stored = list(group.attrs["bands"])
    wanted = stored if bands is None else list(bands)
    absent = [band for band in wanted if band not in stored]
    if absent:
        raise SchemaError(
            f"bands {', '.join(wanted)}",
            f"no {', '.join(absent)} among {', '.join(stored)}",
            where,
            "Select the model's bands with model.bands, or add them to the preset.",
        )
    return [stored.index(band) for band in wanted]


def read_columns(run_dir: str | Path, partition: Partition, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Whole columns of a partition: `object_id`, `flux`, ... or passed-through columns by name.

    Raises:
        SchemaError: no such column.
    """
    group = open_photometry(run_dir, partition)
    kinds = dict(group.attrs["passthrough"])
    return {name: _read_column(group, name, kinds, partition.key) for name in names}


def _read_column(group: zarr.Group, name: str, kinds: dict[str, str], where: str) -> np.ndarray:
    if name in _ROWS or name in _PHOTOMETRY:
        return np.asarray(group[name][:])
    if name not in kinds:
        raise SchemaError(f"one of {', '.join([*_ROWS, *_PHOTOMETRY, *kinds])}", repr(name), where)
    data = np.asarray(group[f"passthrough/{name}"][:])
    if kinds[name] == "string":
        return np.char.decode(np.ascontiguousarray(data).view(f"S{data.shape[1]}")[:, 0], "utf-8")
    return data


def passthrough_names(run_dir: str | Path, partition: Partition) -> tuple[str, ...]:
    """Names of the passed-through columns of a partition."""
    return tuple(open_photometry(run_dir, partition).attrs["passthrough"])
