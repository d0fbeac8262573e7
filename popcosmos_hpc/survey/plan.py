"""Adaptive HEALPix partitions of a catalog, and their blocks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.errors import ConfigurationError, LedgerError
from popcosmos_hpc.partition import Block, Partition
from popcosmos_hpc.survey.files import replace_atomically

HEALPIX_ORDER = 29


@dataclass(frozen=True)
class Plan:
    """What a run is divided into.

    Args:
        partitions: in order of their position along the HEALPix curve.
        block_size: galaxies per block.
    """

    partitions: tuple[Partition, ...]
    block_size: int

    @property
    def n_galaxies(self) -> int:
        """Galaxies in all partitions."""
        return sum(partition.n_galaxies for partition in self.partitions)

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, partition by partition."""
        return tuple(block for partition in self.partitions for block in partition.blocks(self.block_size))

    def write(self, path: str | Path) -> None:
        """Write as Parquet, atomically."""
        columns = {
            name: [getattr(p, name) for p in self.partitions] for name in ("order", "pixel", "n_galaxies")
        }
        table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})
        table = table.replace_schema_metadata({"block_size": str(self.block_size)})
        with replace_atomically(Path(path)) as partial:
            pq.write_table(table, partial)

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Inverse of `write`.

        Raises:
            LedgerError: the file is missing or no plan.
        """
        try:
            table = pq.read_table(path)
            block_size = int(table.schema.metadata[b"block_size"])
            rows = zip(*(table[name].to_pylist() for name in ("order", "pixel", "n_galaxies")), strict=True)
        except (OSError, KeyError, TypeError, pa.ArrowException) as error:
            raise LedgerError("a plan", str(error), str(path), "Run `popcosmos-hpc plan` first.") from error
        return cls(tuple(Partition(*row) for row in rows), block_size)


def healpix_histogram(healpix_29: np.ndarray, order: int) -> np.ndarray:
    """Rows per pixel.

    Args:
        healpix_29: [row] int64 nested pixels at order 29 (the `_healpix_29` of HATS).
        order: order of the histogram.

    Returns:
        int64 [12 x 4^order].
    """
    return np.bincount(healpix_29 >> 2 * (HEALPIX_ORDER - order), minlength=12 * 4**order).astype(np.int64)


def make_partitions(histogram: np.ndarray, highest_order: int, max_rows: int) -> list[Partition]:
    """The coarsest pixels that hold at most `max_rows` rows each.

    The same set as `hats.pixel_math.generate_alignment` without dropped siblings, in vectorised form.

    Args:
        histogram: int64 [12 x 4^highest_order] rows per nested pixel.
        highest_order: order of the histogram.
        max_rows: most rows in a partition.

    Returns:
        non-empty partitions in order along the HEALPix curve.

    Raises:
        ConfigurationError: one pixel of the highest order holds more than `max_rows`, or the histogram has
            another length.
    """
    if len(histogram) != 12 * 4**highest_order:
        raise ConfigurationError(
            f"{12 * 4**highest_order} pixels at order {highest_order}", str(len(histogram))
        )
    densest = int(histogram.max(initial=0))
    if densest > max_rows:
        raise ConfigurationError(
            f"at most max_rows = {max_rows} rows in a pixel of highest_order = {highest_order}",
            f"{densest} rows",
            "partition",
            "Raise max_rows or highest_order.",
        )
    sums = [np.asarray(histogram, np.int64)]
    for _ in range(highest_order):
        sums.append(sums[-1].reshape(-1, 4).sum(axis=1))
    free = np.ones(12, bool)
    found: list[Partition] = []
    for order, counts in enumerate(reversed(sums)):
        taken = free & (counts > 0) & (counts <= max_rows)
        found += [Partition(order, int(pixel), int(counts[pixel])) for pixel in np.flatnonzero(taken)]
        free = np.repeat(free & ~taken, 4)
    return sorted(found, key=lambda p: p.pixel << 2 * (highest_order - p.order))


def pixel_range(partition: Partition) -> tuple[int, int]:
    """First and one-past-last order-29 pixel of a partition."""
    shift = 2 * (HEALPIX_ORDER - partition.order)
    return partition.pixel << shift, (partition.pixel + 1) << shift
