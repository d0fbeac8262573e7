"""Build a pool of prior draws: drawn in parallel, then sorted into tiles."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import popcosmos_hpc
from popcosmos_hpc.campaign.cluster import map_jobs
from popcosmos_hpc.campaign.fingerprint import code_version
from popcosmos_hpc.campaign.partial import finish_partial, new_folder, open_partial
from popcosmos_hpc.campaign.pool_config import PoolConfig
from popcosmos_hpc.campaign.pool_task import draw_shard, draws_file, pool_identity
from popcosmos_hpc.campaign.progress import Progress
from popcosmos_hpc.campaign.worker import worker_environment
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey.pool_store import PoolStore, create_columns, decode, open_pool, write_manifest

logger = logging.getLogger(__name__)
_SETTINGS, _DRAWS = "pool.yaml", "draws"
_JOB_DRAWS = 1 << 19
_SHARD_ROWS = 1 << 24
_TREE_DRAWS = 1 << 21


def build_survey_pool(config: PoolConfig, out_dir: str | Path, client: Any = None) -> PoolStore:
    """Draw a pool and sort it; stopped and called again, it goes on where it was.

    Args:
        config: settings.
        out_dir: the pool to write; must not exist. Until it is whole it lies in a hidden folder beside.
        client: Dask client; None works in this process.

    Raises:
        ConfigurationError: a setting does not fit the bundle, no draw is kept, or `out_dir` exists.
        BundleError: a bundle is missing or damaged.
    """
    out = new_folder(out_dir)
    if client is None:  # before JAX starts its device
        os.environ.update(worker_environment(1))
    settings = config.model_dump_json()
    identity = next(map_jobs(client, pool_identity, [(settings,)]))
    scratch = open_partial(
        out, {**identity, "settings": config.model_dump(mode="json"), "code": code_version()}
    )
    folder = scratch / _DRAWS
    folder.mkdir(exist_ok=True)
    starts = range(0, config.n_draws, _JOB_DRAWS)
    jobs = [(settings, str(folder), first, min(first + _JOB_DRAWS, config.n_draws)) for first in starts]
    progress, n_kept = Progress(config.n_draws, 0, "drawing"), 0
    for job, kept in zip(jobs, map_jobs(client, draw_shard, jobs), strict=True):
        n_kept += kept
        progress.advance(job[3] - job[2])
    progress.close()
    if n_kept == 0:
        raise ConfigurationError(
            "draws that pass the limit and the emulator's redshifts", f"none of {config.n_draws}", "pool",
            "Relax the limit.",
        )  # fmt: skip
    files = [draws_file(folder, job[2]) for job in jobs]
    tiles, n_shards = _sort_into_tiles(files, n_kept, config, identity, scratch)
    facts = {**identity, "n_kept": n_kept, "n_tiles": len(tiles["start"]) - 1}
    _finish(config, facts, tiles, n_shards, scratch)
    finish_partial(scratch, out)
    return open_pool(out)


def _finish(
    config: PoolConfig, facts: dict[str, Any], tiles: dict[str, np.ndarray], n_shards: int, scratch: Path
) -> None:
    """Write what describes the pool, and remove the unsorted draws."""
    facts |= {
        "name": config.name,
        "seed": config.seed,
        "n_drawn": config.n_draws,
        "limit": config.limit.model_dump() if config.limit else None,
        "software": {"popcosmos_hpc": popcosmos_hpc.__version__, "code": code_version()},
    }
    write_manifest(scratch, facts, tiles, n_shards)
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (scratch / _SETTINGS).write_text(settings, encoding="utf-8")
    shutil.rmtree(scratch / _DRAWS)


@dataclass
class _Sorted:
    """Rows of a pool in the order of their tiles, over several files."""

    columns: list[dict[str, np.ndarray]]

    def write(self, position: np.ndarray, values: dict[str, np.ndarray]) -> None:
        for index, columns in enumerate(self.columns):
            inside = (position // _SHARD_ROWS) == index
            for name, array in columns.items():
                array[position[inside] % _SHARD_ROWS] = values[name][inside]


def _sort_into_tiles(
    files: list[Path], n_kept: int, config: PoolConfig, identity: dict[str, Any], scratch: Path
) -> tuple[dict[str, np.ndarray], int]:
    """Write the shards; returns the arrays of the tiles and the number of shards."""
    from popcosmos_hpc.inference.tiles import assign, grow_tree

    bands, names = identity["bands"], identity["param"]
    logger.info("sorting %d draws into tiles", n_kept)
    sample = np.concatenate([_flux(_load(file)["rows"]) for file in _spread(files, n_kept)])[:_TREE_DRAWS]
    tree = grow_tree(sample, np.array(config.softening(tuple(bands))), config.n_tiles)
    leaves = [assign(tree, _flux(_load(file)["rows"])) for file in files]
    count = sum(np.bincount(leaf, minlength=tree.n_leaves) for leaf in leaves)
    start = np.concatenate([[0], np.cumsum(count)])
    sizes = [min(_SHARD_ROWS, n_kept - first) for first in range(0, n_kept, _SHARD_ROWS)]
    columns = [create_columns(scratch, i, size, len(bands), len(names)) for i, size in enumerate(sizes)]
    target, filled = _Sorted(columns), start[:-1].copy()
    moments = _Moments(tree.n_leaves, identity)
    for file, leaf in zip(files, leaves, strict=True):
        values, order = _load(file), np.argsort(leaf, kind="stable")
        ordered = leaf[order]
        rank = np.arange(len(leaf)) - np.searchsorted(ordered, ordered)
        target.write(filled[ordered] + rank, {name: value[order] for name, value in values.items()})
        filled += np.bincount(leaf, minlength=tree.n_leaves)
        moments.add(leaf, values)
    for array in (array for shard in columns for array in shard.values()):
        array.flush()  # pyright: ignore[reportAttributeAccessIssue]
    return {"start": start.astype(np.int64), **moments.finish()}, len(sizes)


class _Moments:
    """Means and variances of the draws of each tile, file by file."""

    def __init__(self, n_tiles: int, identity: dict[str, Any]):
        self._n, self._low, self._high = n_tiles, identity["theta_low"], identity["theta_high"]
        names = identity["param"]
        self._pick = [names.index(name) if name in names else None for name in ("redshift", "N")]
        self._n_bands = len(identity["bands"])
        self._sums = np.zeros((2, n_tiles, self._n_bands + 2))
        self._count = np.zeros(n_tiles)

    def add(self, leaf: np.ndarray, values: dict[str, np.ndarray]) -> None:
        from popcosmos_hpc.inference.tiles import grouped_sums

        theta = decode(values["theta"], np.array(self._low), np.array(self._high))
        others = [np.zeros(len(leaf)) if index is None else theta[:, index] for index in self._pick]
        table = np.column_stack([_flux(values["rows"]), *others])
        self._sums += grouped_sums(leaf, table, self._n)
        self._count += np.bincount(leaf, minlength=self._n)

    def finish(self) -> dict[str, np.ndarray]:
        count = np.maximum(self._count, 1)[:, None]
        mean = self._sums[0] / count
        variance = np.maximum(self._sums[1] / count - mean**2, 0.0)
        both = np.stack([mean, variance], 2).astype(np.float32)
        n = self._n_bands
        return {
            "flux": both[:, :n, 0],
            "variance": both[:, :n, 1],
            "redshift": both[:, n],
            "normalisation": both[:, n + 1],
        }


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        return dict(stored)


def _flux(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[:, :-2]).view(np.float16).astype(np.float32)


def _spread(files: list[Path], n_kept: int) -> list[Path]:
    """Enough files for the tree."""
    return files[: max(1, -(-_TREE_DRAWS * len(files) // n_kept))]
