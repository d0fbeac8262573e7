"""Where a mock survey looks: regions of the sky, and galaxies spread evenly over them.

Galaxies are counted per HEALPix cell first; their positions follow from the seed and the cell alone. So
any set of cells can be made anywhere, at any time, and nothing has to be sorted afterwards. A position is
the centre of a pixel of order 29 (0.4 milliarcseconds wide); all such pixels have the same area.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import cdshealpix.nested as healpix
import numpy as np
from astropy import units
from astropy.coordinates import Latitude, Longitude

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey.plan import HEALPIX_ORDER

_COUNTS, _POSITIONS = 0, 1  # streams of random numbers
_LARGEST_ORDER = 20
_FEWEST_CELLS = 256
_GALAXIES_PER_CELL = 10_000
_MOST_AT_ONCE = 1_000_000
# No point of a pixel is farther from its centre than this [rad] over 2^order: 1.07 in the limit of
# fine pixels (Gorski et al. 2005, arXiv:astro-ph/0409513, section 5), less in coarse ones.
_PIXEL_RADIUS = 1.08


class Cells(NamedTuple):
    """Pixels of one order that meet a footprint.

    Attributes:
        order: HEALPix order.
        pixel: (cell,) int64 nested indices, ascending.
        whole: (cell,) bool; the cell lies inside as a whole.
    """

    order: int
    pixel: np.ndarray
    whole: np.ndarray


class Region(ABC):
    """A part of the sky."""

    @property
    @abstractmethod
    def area(self) -> float:
        """Solid angle [sr]."""

    @abstractmethod
    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether positions [deg] lie inside, bool [position]."""

    @abstractmethod
    def margin(self, ra: np.ndarray, dec: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Whether discs may meet the region, and whether they surely lie inside.

        Args:
            ra: (disc,) centres [deg].
            dec: (disc,) centres [deg].
            radius: of all discs [deg].
        """

    def cells(self, order: int) -> Cells:
        """All pixels of an order that meet the region; perhaps some that do not."""
        pixel, whole = np.arange(12), [np.empty(0, np.int64)]
        for level in range(order + 1):
            if level:
                pixel = _children(pixel, 1)
            ra, dec = _centres_of(pixel, level)
            meets, inside = self.margin(ra, dec, np.degrees(_PIXEL_RADIUS) / 2**level)
            whole.append(_children(pixel[inside], order - level))
            pixel = pixel[meets & ~inside]
        inner = np.concatenate(whole)
        return _united(order, [(inner, np.ones(len(inner))), (pixel, np.zeros(len(pixel)))])


@dataclass(frozen=True)
class Cone(Region):
    """All positions within `radius` of a centre; everything in degrees."""

    ra: float
    dec: float
    radius: float

    @property
    def area(self) -> float:
        """Solid angle [sr]."""
        return 4 * np.pi * np.sin(np.radians(self.radius) / 2) ** 2

    def _distance(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        first, second = np.radians(dec), np.radians(self.dec)
        half_chord = np.sin((first - second) / 2) ** 2
        half_chord += np.cos(first) * np.cos(second) * np.sin(np.radians(ra - self.ra) / 2) ** 2
        return np.degrees(2 * np.arcsin(np.sqrt(np.minimum(half_chord, 1.0))))

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether positions [deg] lie inside."""
        return self._distance(ra, dec) <= self.radius

    def margin(self, ra: np.ndarray, dec: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Whether discs may meet the cone, and whether they surely lie inside."""
        distance = self._distance(ra, dec)
        return distance <= self.radius + radius, distance <= self.radius - radius


@dataclass(frozen=True)
class Box(Region):
    """Positions between two right ascensions and two declinations [deg].

    Args:
        ra_min: western edge.
        ra_max: eastern edge; smaller than `ra_min` in a box that holds ra = 0.
        dec_min: southern edge.
        dec_max: northern edge.
    """

    ra_min: float
    ra_max: float
    dec_min: float
    dec_max: float

    @property
    def width(self) -> float:
        """Extent in right ascension [deg]."""
        return (self.ra_max - self.ra_min) % 360.0 or 360.0

    @property
    def area(self) -> float:
        """Solid angle [sr]."""
        sines = np.sin(np.radians([self.dec_min, self.dec_max]))
        return float(np.radians(self.width) * (sines[1] - sines[0]))

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether positions [deg] lie inside."""
        return ((ra - self.ra_min) % 360.0 <= self.width) & (dec >= self.dec_min) & (dec <= self.dec_max)

    def margin(self, ra: np.ndarray, dec: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Whether discs may meet the box, and whether they surely lie inside."""
        polar = np.abs(dec) + radius >= 90.0
        sine = np.sin(np.radians(min(radius, 90.0))) / np.cos(np.radians(np.where(polar, 0.0, dec)))
        reach = np.where(polar, 360.0, np.degrees(np.arcsin(np.minimum(sine, 1.0))))
        # Distances in right ascension from the western edge, eastward, and from the box's end.
        east = (ra - self.ra_min) % 360.0
        beyond = np.minimum(east - self.width, 360.0 - east)
        meets = (beyond <= reach) & (dec + radius >= self.dec_min) & (dec - radius <= self.dec_max)
        inside = (dec - radius >= self.dec_min) & (dec + radius <= self.dec_max)
        if self.width < 360.0:
            inside &= (east >= reach) & (east + reach <= self.width)
        return meets, inside & meets

    def overlaps(self, other: "Box") -> bool:
        """Whether two boxes share more than an edge."""
        offset = (other.ra_min - self.ra_min) % 360.0
        in_ra = offset < self.width or offset + other.width > 360.0
        return in_ra and self.dec_min < other.dec_max and other.dec_min < self.dec_max


@dataclass(frozen=True)
class Pixels(Region):
    """A set of nested HEALPix pixels of one order."""

    order: int
    pixels: tuple[int, ...]

    @classmethod
    def full_sky(cls) -> "Pixels":
        """The twelve base pixels."""
        return cls(0, tuple(range(12)))

    @property
    def area(self) -> float:
        """Solid angle [sr]."""
        return len(set(self.pixels)) * _pixel_area(self.order)

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether positions [deg] lie inside."""
        return np.isin(_pixel_of(ra, dec, self.order), self.pixels)

    def margin(self, ra: np.ndarray, dec: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """No disc is told from the set: its cells are known without."""
        return np.ones(len(ra), bool), np.zeros(len(ra), bool)

    def cells(self, order: int) -> Cells:
        """All pixels of an order that meet the set."""
        pixel = np.unique(np.array(self.pixels, np.int64))
        if order < self.order:
            shift = 2 * (self.order - order)
            pixel, count = np.unique(pixel >> shift, return_counts=True)
            return Cells(order, pixel, count == 1 << shift)
        pixel = _children(pixel, order - self.order)
        return Cells(order, pixel, np.ones(len(pixel), bool))


@dataclass(frozen=True)
class Footprint:
    """Regions without overlap."""

    regions: tuple[Region, ...]

    @property
    def area(self) -> float:
        """Solid angle [sr]."""
        return sum(region.area for region in self.regions)

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Whether positions [deg] lie inside, bool [position]."""
        return np.logical_or.reduce([region.contains(ra, dec) for region in self.regions])

    def cells(self, order: int) -> Cells:
        """All pixels of an order that meet the footprint."""
        found = [region.cells(order) for region in self.regions]
        return _united(order, [(cells.pixel, cells.whole) for cells in found])

    def cell_order(self, n_galaxies: int) -> int:
        """Order of the cells: some ten thousand galaxies in each, and some hundred cells inside."""
        wanted = max(_FEWEST_CELLS, n_galaxies / _GALAXIES_PER_CELL) / (self.area / (4 * np.pi))
        return int(np.clip(np.ceil(np.log2(wanted / 12) / 2), 0, _LARGEST_ORDER))

    def counts(self, n_galaxies: int, seed: int) -> tuple[Cells, np.ndarray]:
        """Spread galaxies over cells by chance, evenly in solid angle.

        Of the cells that lie inside as a whole the area is known, so their share is binomial. Those on
        the edge get theirs by drawing positions in them, of which the ones inside count; so no area of a
        cut cell is needed, and the counts are exactly multinomial.

        Args:
            n_galaxies: in the whole footprint.
            seed: of the random numbers.

        Returns:
            the cells, and galaxies in each, int64 [cell].

        Raises:
            ConfigurationError: the footprint is empty.
        """
        if not self.area > 0:
            raise ConfigurationError(
                "a footprint with an area", "none", "sky", "Give it a radius or a width."
            )
        cells = self.cells(self.cell_order(n_galaxies))
        random = np.random.default_rng([seed, _COUNTS])
        edge, counts = cells.pixel[~cells.whole], np.zeros(len(cells.pixel), np.int64)
        share = min(cells.whole.sum() * _pixel_area(cells.order) / self.area, 1.0) if len(edge) else 1.0
        n_whole = random.binomial(n_galaxies, share)
        if n_whole:
            n_cells = int(cells.whole.sum())
            counts[cells.whole] = random.multinomial(n_whole, np.full(n_cells, 1 / n_cells))
        left, on_edge = n_galaxies - n_whole, np.zeros(len(edge), np.int64)
        while left:
            row = random.integers(len(edge), size=min(4 * left + 1000, _MOST_AT_ONCE))
            pixel = _pixels_within(random, edge[row], cells.order)
            row = row[self.contains(*sky_coordinates(pixel))][:left]
            on_edge += np.bincount(row, minlength=len(edge))
            left -= len(row)
        counts[~cells.whole] = on_edge
        return cells, counts

    def positions(self, cells: Cells, counts: np.ndarray, seed: int) -> np.ndarray:
        """Positions of the galaxies of cells: those of a cell follow from the seed and the cell alone.

        Args:
            cells: any of those that `counts` gave.
            counts: int64 [cell] galaxies in each.
            seed: of the random numbers.

        Returns:
            pixels of order 29 (galaxy,) int64, cell by cell, ascending in each.
        """
        found = [[np.empty(0, np.int64)] for _ in counts]
        stream = [np.random.default_rng([seed, _POSITIONS, cells.order, int(p)]) for p in cells.pixel]
        left = counts.copy()
        while len(rows := np.flatnonzero(left)):
            # Cut cells draw more than they need, for some positions lie outside.
            sizes = [int(left[i] if cells.whole[i] else min(4 * left[i] + 50, _MOST_AT_ONCE)) for i in rows]
            drawn = [
                _pixels_within(stream[i], np.full(size, cells.pixel[i]), cells.order)
                for i, size in zip(rows, sizes, strict=True)
            ]
            inside = np.repeat(cells.whole[rows], sizes)
            tested = np.concatenate(drawn)[~inside]
            if len(tested):  # many cells in one call, for every call starts threads
                inside[~inside] = self.contains(*sky_coordinates(tested))
            pieces = np.split(inside, np.cumsum(sizes)[:-1])
            for i, pixel, good in zip(rows, drawn, pieces, strict=True):
                found[i].append(pixel[good][: left[i]])
                left[i] -= len(found[i][-1])
        return np.concatenate([np.sort(np.concatenate(parts)) for parts in found])


def sky_coordinates(healpix_29: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination [deg] of the centres of pixels of order 29."""
    return _centres_of(healpix_29, HEALPIX_ORDER)


def _centres_of(pixel: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    lon, lat = healpix.healpix_to_lonlat(pixel.astype(np.uint64), order, num_threads=1)
    return np.asarray(lon.deg), np.asarray(lat.deg)


def _children(pixel: np.ndarray, levels: int) -> np.ndarray:
    """All pixels `levels` orders finer."""
    for _ in range(levels):
        pixel = ((pixel << 2)[:, None] + np.arange(4)).ravel()
    return pixel


def _pixel_of(ra: np.ndarray, dec: np.ndarray, order: int) -> np.ndarray:
    lon, lat = Longitude(ra, unit=units.deg), Latitude(dec, unit=units.deg)
    return np.asarray(healpix.lonlat_to_healpix(lon, lat, order, num_threads=1)).astype(np.int64)


def _pixel_area(order: int) -> float:
    return 4 * np.pi / (12 * 4**order)


def _pixels_within(random: np.random.Generator, cells: np.ndarray, order: int) -> np.ndarray:
    """One pixel of order 29 by chance in each of the given cells."""
    shift = 2 * (HEALPIX_ORDER - order)
    return (cells << shift) + random.integers(1 << shift, size=len(cells))


def _united(order: int, found: list[tuple[np.ndarray, np.ndarray]]) -> Cells:
    """Cells of several searches, each once; whole if it is whole in one of them."""
    pixel = np.concatenate([np.asarray(item[0]).astype(np.int64) for item in found])
    whole = np.concatenate([np.asarray(item[1]).astype(bool) for item in found])
    unique, row = np.unique(pixel, return_inverse=True)
    return Cells(order, unique, np.bincount(row, weights=whole, minlength=len(unique)) > 0)
