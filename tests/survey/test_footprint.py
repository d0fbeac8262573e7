import cdshealpix.nested as healpix
import numpy as np
import pytest
from hats.pixel_math.spatial_index import compute_spatial_index
from scipy import stats

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey import footprint as module
from popcosmos_hpc.survey.footprint import Box, Cells, Cone, Footprint, Pixels, sky_coordinates

REGIONS = [
    Cone(10, 20, 5),
    Cone(0, 89, 8),
    Cone(180, -90, 30),
    Cone(40, 0, 120),
    Cone(40, 0, 180),
    Box(156, 238, -3, 4),
    Box(330, 52.5, -36, -26),
    Box(350, 10, -5, 80),
    Box(10, 350, -5, 90),
    Box(0, 360, 20, 60),
    Box(-20, 20, -90, -60),
    Pixels(3, (1, 5, 700)),
    Pixels(5, (4096, 4097, 4098, 4099, 9000)),
]


def random_sky(n, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0, 360, n), np.degrees(np.arcsin(random.uniform(-1, 1, n)))


@pytest.mark.parametrize("order", [0, 3, 6])
def test_no_point_is_farther_from_its_pixel_than_assumed(order):
    random = np.random.default_rng(order)
    pixel = np.unique(random.integers(12 * 4**order, size=2000))
    corners = healpix.vertices(pixel, order)
    centres = healpix.healpix_to_lonlat(pixel, order)
    lon, lat, lon0, lat0 = (np.asarray(x.rad) for x in (*corners, *centres))
    cosine = np.sin(lat) * np.sin(lat0)[:, None]
    cosine += np.cos(lat) * np.cos(lat0)[:, None] * np.cos(lon - lon0[:, None])
    assert np.arccos(np.minimum(cosine, 1)).max() < module._PIXEL_RADIUS / 2**order


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_cells_hold_the_region_and_whole_ones_lie_inside(region):
    ra, dec = random_sky(20_000)
    inside = region.contains(ra, dec)
    share = region.area / (4 * np.pi)
    # 4.5 standard errors of a binomial share.
    assert abs(inside.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / len(ra)) + 1e-12
    for order in (2, 5, 7):
        cells = region.cells(order)
        pixel = compute_spatial_index(ra, dec) >> 2 * (29 - order)
        assert np.all(np.diff(cells.pixel) > 0)
        assert np.isin(pixel[inside], cells.pixel).all()
        random = np.random.default_rng(1)
        whole = cells.pixel[cells.whole]
        if len(whole):
            within = module._pixels_within(random, whole[random.integers(len(whole), size=20_000)], order)
            assert region.contains(*sky_coordinates(within)).all()


def test_overlaps():
    box = Box(350, 10, -5, 5)
    assert box.overlaps(Box(5, 20, 0, 10)) and Box(5, 20, 0, 10).overlaps(box)
    assert box.overlaps(Box(340, 30, -10, 10)) and box.overlaps(Box(355, 5, -1, 1))
    assert not box.overlaps(Box(10, 20, -5, 5)) and not box.overlaps(Box(0, 5, 5, 10))
    assert Box(0, 360, -5, 5).overlaps(Box(200, 210, 0, 10))


def in_cone(ra, dec):
    cosine = np.sin(np.radians(dec)) * np.sin(np.radians(2))
    cosine += np.cos(np.radians(dec)) * np.cos(np.radians(2)) * np.cos(np.radians(ra - 150))
    return [(1 - cosine) / (1 - np.cos(np.radians(3)))]


def in_boxes(ra, dec):
    north, sine = dec > -10, np.sin(np.radians(dec))
    edges = {True: (-3, 4), False: (-36, -26)}
    found = [(ra[north] - 150) / 10, ((ra[~north] - 330) % 360) / 50]
    for half, (low, high) in edges.items():
        low, high = np.sin(np.radians([low, high]))
        found.append((sine[north == half] - low) / (high - low))
    return found


def on_sky(ra, dec):
    return [ra / 360, (1 + np.sin(np.radians(dec))) / 2]


@pytest.mark.parametrize(
    ("regions", "variates"),
    [
        ((Cone(150, 2, 3),), in_cone),
        ((Box(330, 20, -36, -26), Box(150, 160, -3, 4)), in_boxes),
        ((Pixels.full_sky(),), on_sky),
    ],
    ids=["cone", "boxes", "full"],
)
def test_galaxies_are_spread_evenly(regions, variates):
    n, footprint = 20_000, Footprint(regions)
    cells, counts = footprint.counts(n, seed=3)
    assert counts.sum() == n and len(counts) == len(cells.pixel)
    position = footprint.positions(cells, counts, 3)
    assert len(position) == n and np.all(np.diff(position) >= 0)
    ra, dec = sky_coordinates(position)
    assert footprint.contains(ra, dec).all()
    np.testing.assert_array_equal(compute_spatial_index(ra, dec), position)
    # Coordinates in which equal areas are equal lengths; a fair draw fails once in ten thousand.
    for values in variates(ra, dec):
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    for region in regions:
        share = region.area / footprint.area
        assert abs(region.contains(ra, dec).mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / n)
    # Within cells that lie inside, counts are those of a multinomial: their chi^2 per degree of freedom is
    # one within 4.5 sqrt(2 / number of cells).
    inner = counts[cells.whole]
    assert abs(inner.var(ddof=1) / inner.mean() - 1) < 4.5 * np.sqrt(2 / len(inner))


def test_edge_cells_get_their_share():
    footprint = Footprint((Cone(150, 2, 3),))
    n = 200_000
    cells, counts = footprint.counts(n, seed=1)
    whole = cells.whole.sum() * module._pixel_area(cells.order) / footprint.area
    error = np.sqrt(whole * (1 - whole) / n)
    assert 0.3 < whole < 1 and abs(counts[cells.whole].sum() / n - whole) < 4.5 * error


def test_positions_depend_on_seed_and_cell_alone():
    footprint = Footprint((Cone(150, 2, 3),))
    cells, counts = footprint.counts(10_000, seed=1)
    together = np.split(footprint.positions(cells, counts, 1), np.cumsum(counts)[:-1])
    rows = [0, len(counts) // 2, len(counts) // 2 + 1]
    assert set(cells.whole[rows]) == {True, False}
    for row in rows:
        alone = Cells(cells.order, cells.pixel[[row]], cells.whole[[row]])
        np.testing.assert_array_equal(together[row], footprint.positions(alone, counts[[row]], 1))
    assert not np.array_equal(together[rows[1]], footprint.positions(alone, counts[rows[1:2]], 2))
    assert len(footprint.positions(alone, np.array([0]), 1)) == 0


def test_cells_are_neither_few_nor_crowded():
    full, small = Footprint((Pixels.full_sky(),)), Footprint((Cone(10, 10, 1e-3),))
    assert full.cell_order(10) == 3
    assert 12 * 4 ** full.cell_order(10**9) >= 10**5
    cells, counts = small.counts(1000, 1)
    assert 200 < len(cells.pixel) < 4000 and counts.sum() == 1000


def test_an_empty_footprint_is_refused():
    with pytest.raises(ConfigurationError, match="footprint"):
        Footprint(()).counts(10, 1)
