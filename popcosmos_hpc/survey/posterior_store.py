"""Posterior draws, summaries and certificates: one Zarr group per partition, one shard per block and array.

A block's shards are written to a scratch folder under the names they will have in the store, and renamed into
place once the block is committed. No shard is ever read, modified and written back, and the presence of a
chunk says nothing: the commit record does.
"""

# zarr declares members of a group as arrays or groups, and attributes as any JSON.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs.blosc
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from popcosmos_hpc.errors import ConfigurationError, LedgerError, SchemaError
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.partition import Block, Partition
from popcosmos_hpc.survey.files import sync, sync_tree
from popcosmos_hpc.survey.pool_store import open_pool
from popcosmos_hpc.survey.rounding import round_absolute, round_mantissa, round_theta

SCHEMA_VERSION = 1
CERTIFICATE = (
    "ess",
    "pareto_k",
    "rhat",
    "ppp",
    "log_evidence",
    "log_evidence_error",
    "max_weight",
    "n_distinct",
    "acceptance",
    "n_evaluations",
    "status",
    "sampler",
)
SUMMARY_BITS = 12
REDSHIFT_QUANTILE_BITS = 14
LOG_DENSITY_STEP = 2.0**-6
_INNER_ROWS = 1024
_INFORMATION = {"run", "pool"}  # attributes that decide nothing
_INTEGERS = {"object_id": "int64", "pool_row": "int32"}
_DIMENSIONS = {
    "object_id": ("galaxy",),
    "theta": ("galaxy", "draw", "param"),
    "log_prior": ("galaxy", "draw"),
    "log_likelihood": ("galaxy", "draw"),
    "pool_row": ("galaxy", "draw"),
    "summary": ("galaxy", "quantity", "quantile"),
    "redshift_quantiles": ("galaxy", "redshift_quantile"),
    "certificate": ("galaxy", "certificate"),
}
# Threads inside Blosc store their pieces in the order they finish: the same data would be different bytes.
numcodecs.blosc.use_threads = False


class BlockPosterior(NamedTuple):
    """What is stored of a block of n galaxies.

    Attributes:
        object_id: int64 [n].
        theta: [n, draw, param] physical parameters.
        log_prior: [n, draw].
        log_likelihood: [n, draw].
        pool_row: [n, draw] rows of the pool, -1 for draws from none.
        summary: [n, quantity, 5] quantiles 2.5, 16, 50, 84, 97.5 %.
        redshift_quantiles: [n, 21].
        certificate: [n, len(CERTIFICATE)].
    """

    object_id: Any
    theta: Any
    log_prior: Any
    log_likelihood: Any
    pool_row: Any
    summary: Any
    redshift_quantiles: Any
    certificate: Any


@dataclass(frozen=True)
class ShardFile:
    """A file of a block: its place under the run directory, its digest and size."""

    relative_path: str
    sha256: str
    nbytes: int


def store_key(partition: Partition) -> str:
    """Folder of a partition's posterior, relative to the run directory."""
    return f"posterior/{partition.key}.zarr"


def create_partition_store(
    run_dir: str | Path,
    partition: Partition,
    block_size: int,
    draws: int,
    param_names: Sequence[str],
    summary_names: Sequence[str],
    attrs: Mapping[str, Any] | None = None,
    redshift_levels: int = 21,
) -> Path:
    """Create the empty group of a partition; one that exists with the same facts is kept.

    Args:
        run_dir: the run.
        partition: its rows.
        block_size: galaxies per shard.
        draws: draws per galaxy.
        param_names: names along `param`.
        summary_names: names along `quantity`.
        attrs: further facts (units, run, levels of the quantiles); JSON values. `run` is not compared: a run
            may be renamed.
        redshift_levels: number of redshift quantiles.

    Raises:
        LedgerError: a store with other facts is there.
    """
    path = Path(run_dir) / store_key(partition)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "n_galaxies": partition.n_galaxies,
        "block_size": block_size,
        "draws": draws,
        "param": list(param_names),
        "quantity": list(summary_names),
        "certificate": list(CERTIFICATE),
        "redshift_levels": redshift_levels,
        **dict(attrs or {}),
    }
    if not (path / "zarr.json").is_file():
        scratch = Path(run_dir) / "scratch" / f"posterior-{uuid.uuid4().hex}"
        shapes = _shapes(draws, len(param_names), len(summary_names), redshift_levels)
        try:
            _create_arrays(scratch, partition.n_galaxies, block_size, shapes, facts)
            sync_tree(scratch)
            _rename_unless_there(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    found = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    compared = facts.keys() - _INFORMATION
    differing = sorted(key for key in compared if found.get(key) != _as_json(facts[key]))
    if differing:
        raise LedgerError(
            f"a store with the same {', '.join(differing)}",
            "another run's",
            str(path),
            "Use a new run directory.",
        )
    return path


def _rename_unless_there(scratch: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.rename(path)
    except OSError:
        if not (path / "zarr.json").is_file():
            raise
    sync(path.parent)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shapes(draws: int, params: int, quantities: int, levels: int) -> dict[str, tuple[int, ...]]:
    return {
        "object_id": (),
        "theta": (draws, params),
        "log_prior": (draws,),
        "log_likelihood": (draws,),
        "pool_row": (draws,),
        "summary": (quantities, 5),
        "redshift_quantiles": (levels,),
        "certificate": (len(CERTIFICATE),),
    }


def _inner_rows(block_size: int) -> int:
    if block_size <= _INNER_ROWS:
        return block_size
    return max(gcd(block_size, rows) for rows in range(1, _INNER_ROWS + 1))


def _create_arrays(
    path: Path, n: int, block_size: int, shapes: Mapping[str, tuple[int, ...]], attrs: Mapping[str, Any]
) -> dict[str, zarr.Array]:
    group = zarr.create_group(path, zarr_format=3, attributes=dict(attrs))
    arrays = {}
    inner = _inner_rows(block_size)
    for name, shape in shapes.items():
        chunks = (inner, *shape)
        if name == "theta":
            chunks = (inner, shape[0], 1)
        dtype = _INTEGERS.get(name, "float32")
        # Opened again, an array forgets this setting, so these very objects are written to.
        arrays[name] = group.create_array(
            name,
            shape=(n, *shape),
            dtype=dtype,
            fill_value=-1 if name in _INTEGERS else np.nan,
            chunks=chunks,
            shards=(block_size, *shape),
            dimension_names=_DIMENSIONS[name],
            config={"write_empty_chunks": True},
            compressors=BloscCodec(
                typesize=np.dtype(dtype).itemsize, cname="zstd", clevel=5, shuffle="bitshuffle"
            ),
        )
    return arrays


def write_block(
    scratch_dir: str | Path,
    block: Block,
    block_size: int,
    data: BlockPosterior,
    keep_bits: int = 10,
    space: ParameterSpace | None = None,
) -> list[ShardFile]:
    """Write a block's shards under `scratch_dir`, flushed to disk.

    Args:
        scratch_dir: a folder of this attempt; the shards lie in it under their final relative paths.
        block: the rows.
        block_size: galaxies per shard of the store.
        data: the block's arrays.
        keep_bits: mantissa bits kept of theta.
        space: the parameters, for rounding on their ranges (see `rounding.round_theta`).

    Returns:
        the shards in a fixed order, one per array.

    Raises:
        SchemaError: an array does not have the block's number of galaxies.
        OSError: the disk is full.
    """
    if not 0 <= keep_bits <= 23:
        raise ConfigurationError("keep_bits in 0..23", str(keep_bits), "output")
    arrays = _rounded(data, keep_bits, space)
    for name, array in arrays.items():
        if len(array) != block.n_galaxies:
            raise SchemaError(f"{block.n_galaxies} galaxies", f"{len(array)} in {name}", block.key)
    scratch = Path(scratch_dir)
    root = scratch / store_key(block.partition)
    shutil.rmtree(root, ignore_errors=True)
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    stores = _create_arrays(root, block.partition.n_galaxies, block_size, shapes, {})
    shards = []
    for name, array in arrays.items():
        stores[name][block.start : block.stop] = array
        zeros = "/".join(["0"] * (array.ndim - 1))
        file = root / name / "c" / str(block.index) / zeros if zeros else root / name / "c" / str(block.index)
        sync(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append(ShardFile(str(file.relative_to(scratch)), digest, file.stat().st_size))
    return shards


def _rounded(data: BlockPosterior, keep_bits: int, space: ParameterSpace | None) -> dict[str, np.ndarray]:
    return {
        "object_id": np.asarray(data.object_id, np.int64),
        "theta": round_theta(data.theta, keep_bits, space),
        "log_prior": round_absolute(data.log_prior, LOG_DENSITY_STEP),
        "log_likelihood": round_absolute(data.log_likelihood, LOG_DENSITY_STEP),
        "pool_row": np.asarray(data.pool_row, np.int32),
        "summary": round_mantissa(data.summary, SUMMARY_BITS),
        "redshift_quantiles": round_mantissa(data.redshift_quantiles, REDSHIFT_QUANTILE_BITS),
        "certificate": round_mantissa(data.certificate, 23),
    }


def open_partition(run_dir: str | Path, partition: Partition) -> zarr.Group:
    """The Zarr group of a partition, read-only.

    Raises:
        LedgerError: it was not created.
    """
    path = Path(run_dir) / store_key(partition)
    if not (path / "zarr.json").is_file():
        raise LedgerError("a posterior store", "none", str(path), "Run `popcosmos-hpc fit` first.")
    return zarr.open_group(path, mode="r", zarr_format=3)


def read_posterior(
    run_dir: str | Path,
    partition: Partition,
    columns: Iterable[str] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of a partition; rows of blocks that were not fitted are NaN (object_id -1).

    Args:
        run_dir: the run.
        partition: which.
        columns: names of arrays of the store, or `theta.<parameter>` for one parameter [galaxy, draw], which
            reads nothing else; default all arrays.
        start: first row.
        stop: one past the last row; default the end.

    Raises:
        SchemaError: no such array or parameter.
        BundleError: draws refer to a pool that is not there.
        LedgerError: they refer to another pool than the one that is there.
    """
    group = open_partition(run_dir, partition)
    rows = slice(start, partition.n_galaxies if stop is None else stop)
    stored = [name for name in _DIMENSIONS if name in group]
    names = stored if columns is None else list(columns)
    return {name: _read_array(group, name, rows, partition) for name in names}


def _read_array(group: zarr.Group, name: str, rows: slice, partition: Partition) -> np.ndarray:
    if name == "theta":
        return _restore(group, np.asarray(group[name][rows]), rows, slice(None))
    if name in group:
        return np.asarray(group[name][rows])
    params = list(group.attrs["param"])
    parameter = name.removeprefix("theta.")
    if not name.startswith("theta.") or parameter not in params:
        legal = [*_DIMENSIONS, *(f"theta.{param}" for param in params)]
        raise SchemaError(f"one of {', '.join(legal)}", repr(name), partition.key)
    index = params.index(parameter)
    stored = np.asarray(group["theta"][rows, :, index])
    return _restore(group, stored[..., None], rows, slice(index, index + 1))[..., 0]


def _restore(group: zarr.Group, theta: np.ndarray, rows: slice, params: slice) -> np.ndarray:
    """Fill in parameters that are kept as rows of a pool; theta is [galaxy, draw, some of param]."""
    if "pool_sha256" not in group.attrs:
        return theta
    row = np.asarray(group["pool_row"][rows])
    referred = np.isnan(theta).all((1, 2)) & (row >= 0).all(1)
    if referred.any():
        pool = open_pool(str(group.attrs["pool"]))
        if pool.sha256 != group.attrs["pool_sha256"]:
            raise LedgerError(
                f"a pool of sha256 {group.attrs['pool_sha256']}", pool.sha256, str(pool.path),
                "Restore the pool that the draws refer to.",
            )  # fmt: skip
        theta[referred] = pool.parameters(row[referred])[..., params]
    return theta


def store_paths(run_dir: str | Path) -> Iterator[Path]:
    """Folders of the posterior stores of a run."""
    yield from sorted((Path(run_dir) / "posterior").glob("Norder=*/Dir=*/Npix=*.zarr"))


def sizes(run_dir: str | Path) -> dict[str, float]:
    """Bytes on disk per stored galaxy, array by array, with `total`; empty where nothing is stored."""
    nbytes, rows = dict.fromkeys(_DIMENSIONS, 0.0), 0
    for path in store_paths(run_dir):
        facts = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
        for name in _DIMENSIONS:
            nbytes[name] += sum(
                file.stat().st_size for file in (path / name / "c").rglob("*") if file.is_file()
            )
        for shard in (path / "object_id" / "c").glob("*"):
            first = int(shard.name) * facts["block_size"]
            rows += min(facts["block_size"], facts["n_galaxies"] - first)
    if not rows:
        return {}
    per_galaxy = {name: count / rows for name, count in nbytes.items()}
    return {**per_galaxy, "total": sum(per_galaxy.values())}
