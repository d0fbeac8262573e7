"""A pool of prior draws on disk: photometry and parameters in 16 bits, sorted into tiles, in shards.

A folder with `manifest.json`, `tiles.npz` and three files per shard: `rows` (flux of every band as float16,
then the code of the redshift, then the low 16 bits of the draw's number), `theta` (codes of the parameters)
and `draw` (the draw's number). Files are opened memory-mapped; the manifest holds their sha256.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.survey.files import replace_atomically

FORMAT = 1
CODES = 65535
"""Largest code of a parameter; codes are even over its range."""
_MANIFEST, _TILES = "manifest.json", "tiles.npz"
_COLUMNS = ("rows", "theta", "draw")
_CURE = "Build the pool again."
_REQUIRED = (
    "format", "bands", "param", "n_drawn", "n_kept", "seed", "n_tiles", "shards", "theta_low", "theta_high",
    "identity", "sha256",
)  # fmt: skip


@dataclass(frozen=True)
class PoolStore:
    """An opened pool.

    Args:
        path: its folder.
        manifest: facts.
        tiles: arrays of the tiles: `start` (tile + 1,), `flux` and `variance` (tile, band), `redshift` and
            `normalisation` (tile, 2).
    """

    path: Path
    manifest: dict[str, Any]
    tiles: dict[str, np.ndarray]

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(self.manifest["bands"])

    @property
    def sha256(self) -> str:
        """Hash of everything the pool holds."""
        return self.manifest["sha256"]

    @property
    def nbytes(self) -> int:
        """Bytes in memory once all columns are read."""
        each = 2 * (len(self.bands) + 2) + 2 * len(self.manifest["param"]) + 4
        return each * self.manifest["n_kept"] + sum(array.nbytes for array in self.tiles.values())

    def column(self, name: str) -> np.ndarray:
        """A whole column in memory: `rows` (draw, band + 2), `theta` (draw, param) or `draw` (draw,)."""
        return np.concatenate(list(self.shards(name)))

    def parameters(self, row: np.ndarray) -> np.ndarray:
        """Parameters (*row, param) float32 of rows of the pool, read from disk."""
        flat = np.ravel(row)
        codes = np.empty((flat.size, len(self.manifest["param"])), np.uint16)
        first = 0
        for shard in self.shards("theta"):
            inside = (flat >= first) & (flat < first + len(shard))
            codes[inside] = shard[flat[inside] - first]
            first += len(shard)
        low, high = (np.array(self.manifest[f"theta_{end}"]) for end in ("low", "high"))
        return decode(codes, low, high).reshape(*np.shape(row), -1)

    def shards(self, name: str) -> Iterator[np.ndarray]:
        """The shards of a column, memory-mapped."""
        for index in range(len(self.manifest["shards"])):
            yield np.load(shard_file(self.path, index, name), mmap_mode="r")


def shard_file(folder: Path, index: int, column: str) -> Path:
    """File of a column of a shard."""
    return folder / f"shard-{index:05d}.{column}.npy"


def encode(theta: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes (draw, param) uint16 of parameters; values beyond the range have the codes of its ends."""
    position = (np.asarray(theta, np.float64) - low) / (high - low)
    return np.rint(CODES * np.clip(position, 0.0, 1.0)).astype(np.uint16)


def decode(code: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Parameters (draw, param) float32 of their codes."""
    return (low + (high - low) / CODES * code.astype(np.float64)).astype(np.float32)


def create_columns(folder: Path, index: int, n_rows: int, n_bands: int, n_parameters: int) -> dict[str, Any]:
    """Empty memory-mapped files of a shard, to be filled."""
    shapes = {
        "rows": ((n_rows, n_bands + 2), "uint16"),
        "theta": ((n_rows, n_parameters), "uint16"),
        "draw": ((n_rows,), "uint32"),
    }
    return {
        name: np.lib.format.open_memmap(shard_file(folder, index, name), "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }


def write_manifest(folder: Path, facts: dict[str, Any], tiles: dict[str, np.ndarray], n_shards: int) -> str:
    """Finish a pool whose shards are written; returns its sha256."""
    with replace_atomically(folder / _TILES) as partial, open(partial, "wb") as stream:
        np.savez(stream, **tiles)  # pyright: ignore[reportArgumentType]
    shards = [
        {name: _digest(shard_file(folder, index, name)) for name in _COLUMNS} for index in range(n_shards)
    ]
    content = {"format": FORMAT, **facts, "shards": shards, "tiles": _digest(folder / _TILES)}
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    with replace_atomically(folder / _MANIFEST) as partial:
        partial.write_text(json.dumps({**content, "sha256": sha256}, indent=1), encoding="utf-8")
    return sha256


def open_pool(folder: str | Path) -> PoolStore:
    """Open a pool and check that it is whole; its files are not hashed (see `verify_pool`).

    Raises:
        BundleError: no pool, one of another format, or one whose files are missing or cut short.
    """
    path = Path(folder)
    if not (path / _MANIFEST).is_file():
        raise BundleError("a pool of prior draws", f"no {_MANIFEST}", str(path), "Run `pool build` first.")
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BundleError("a JSON file", "other content", str(path / _MANIFEST), _CURE) from error
    if missing := [key for key in _REQUIRED if key not in manifest]:
        raise BundleError("a complete manifest", f"none of {', '.join(missing)}", str(path), _CURE)
    if manifest["format"] != FORMAT:
        raise BundleError(f"a pool of format {FORMAT}", str(manifest["format"]), str(path), _CURE)
    for index, shard in enumerate(manifest["shards"]):
        for name in _COLUMNS:
            _check_size(shard_file(path, index, name), shard[name]["nbytes"])
    _check_size(path / _TILES, manifest["tiles"]["nbytes"])
    with np.load(path / _TILES) as stored:
        tiles = dict(stored)
    return PoolStore(path, manifest, tiles)


def verify_pool(store: PoolStore) -> None:
    """Hash every file of a pool.

    Raises:
        BundleError: a file is not what the manifest says.
    """
    files = {store.path / _TILES: store.manifest["tiles"]}
    for index, shard in enumerate(store.manifest["shards"]):
        files |= {shard_file(store.path, index, name): shard[name] for name in _COLUMNS}
    for file, facts in files.items():
        if (found := _digest(file)["sha256"]) != facts["sha256"]:
            raise BundleError(f"sha256 {facts['sha256']}", found, str(file), _CURE)


def _digest(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "nbytes": file.stat().st_size}


def _check_size(file: Path, nbytes: int) -> None:
    found = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
    if found != f"{nbytes} bytes":
        raise BundleError(f"{nbytes} bytes", found, str(file), _CURE)
