import numpy as np
import pytest
from hats.pixel_math import generate_alignment

from popcosmos_hpc.errors import ConfigurationError, LedgerError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.plan import Plan, healpix_histogram, make_partitions, pixel_range


@pytest.mark.parametrize(
    ("order", "threshold", "seed"), [(0, 50, 0), (3, 10, 1), (5, 30, 2), (5, 1000, 3), (5, 10**6, 4)]
)
def test_partitions_are_those_of_hats(order, threshold, seed):
    rng = np.random.default_rng(seed)
    histogram = rng.poisson(rng.gamma(0.05, 40, 12 * 4**order)).astype(np.int64)
    histogram = np.minimum(histogram, threshold)
    expected = {item for item in generate_alignment(histogram, order, 0, threshold) if item is not None}
    found = make_partitions(histogram, order, threshold)
    assert {(p.order, p.pixel, p.n_galaxies) for p in found} == {tuple(map(int, item)) for item in expected}
    assert [pixel_range(p)[0] for p in found] == sorted(pixel_range(p)[0] for p in found)
    assert sum(p.n_galaxies for p in found) == histogram.sum()


def test_too_dense_a_pixel_is_refused():
    histogram = np.zeros(12, np.int64)
    histogram[3] = 11
    with pytest.raises(ConfigurationError, match="Raise max_rows"):
        make_partitions(histogram, 0, 10)
    with pytest.raises(ConfigurationError, match="48 pixels"):
        make_partitions(histogram, 1, 10)


def test_no_rows_make_no_partitions():
    assert make_partitions(np.zeros(48, np.int64), 1, 10) == []


def test_histogram_of_pixels():
    low, high = pixel_range(Partition(1, 5, 0))
    assert healpix_histogram(np.array([low, high - 1, high]), 1)[[5, 6]].tolist() == [2, 1]


def test_plans_round_trip(tmp_path):
    plan = Plan((Partition(1, 5, 10), Partition(0, 3, 4)), 4)
    plan.write(tmp_path / "plan.parquet")
    assert Plan.read(tmp_path / "plan.parquet") == plan
    assert [block.n_galaxies for block in plan.blocks()] == [4, 4, 2, 4] and plan.n_galaxies == 14
    with pytest.raises(LedgerError, match="popcosmos-hpc plan"):
        Plan.read(tmp_path / "none.parquet")
