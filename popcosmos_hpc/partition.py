"""Units of storage and of work on the sky."""

from dataclasses import dataclass

_PIXELS_PER_DIRECTORY = 10_000


@dataclass(frozen=True, order=True)
class Partition:
    """A HEALPix (nested) pixel that is stored together.

    Args:
        order: HEALPix order.
        pixel: nested pixel index at that order.
        n_galaxies: rows in the pixel.
    """

    order: int
    pixel: int
    n_galaxies: int

    @property
    def key(self) -> str:
        """Path of the partition, in the grammar of HATS.

        >>> Partition(5, 1234, 10).key
        'Norder=5/Dir=0/Npix=1234'
        """
        directory = self.pixel // _PIXELS_PER_DIRECTORY * _PIXELS_PER_DIRECTORY
        return f"Norder={self.order}/Dir={directory}/Npix={self.pixel}"

    def blocks(self, size: int) -> tuple["Block", ...]:
        """Cut the partition into blocks of `size` rows; the last may be shorter.

        >>> [block.stop for block in Partition(5, 1234, 10).blocks(4)]
        [4, 8, 10]
        """
        starts = range(0, self.n_galaxies, size)
        return tuple(
            Block(self, index, start, min(start + size, self.n_galaxies))
            for index, start in enumerate(starts)
        )


@dataclass(frozen=True, order=True)
class Block:
    """Rows `start:stop` of a partition: the unit of work, of one Zarr shard, of one commit."""

    partition: Partition
    index: int
    start: int
    stop: int

    @property
    def key(self) -> str:
        """Path of the block under its partition.

        >>> Partition(5, 1234, 10).blocks(4)[1].key
        'Norder=5/Dir=0/Npix=1234/b00001'
        """
        return f"{self.partition.key}/b{self.index:05d}"

    @property
    def n_galaxies(self) -> int:
        """Rows in the block."""
        return self.stop - self.start
