"""Mock catalogs of the toy world: the same bytes however they are made, and what they promise."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats import read_hats
from hats.io.validation import is_valid_catalog
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN, compute_spatial_index

from popcosmos_hpc.campaign import mock_catalog, mock_task
from popcosmos_hpc.campaign.mock_catalog import make_mock, plan_portions
from popcosmos_hpc.campaign.mock_config import MockConfig, load_mock_config
from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.bundle import save_bundle
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.model.noise_bundle import uncertainty_to_bundle
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.settings import parse_settings
from popcosmos_hpc.survey.catalog import SourceCatalog, plan_catalog
from tests import toy, toy_run

N = 3000
DEPTHS = dict(zip(toy.BANDS, (22.5 - 2.5 * np.log10(5 * toy.ERRORS)).tolist(), strict=True))


def config(**changes) -> MockConfig:
    settings = {
        "name": "toy-mock",
        "seed": 5,
        "n_galaxies": N,
        "sky": {"boxes": [{"ra": [355, 5], "dec": [-4, 4]}, {"ra": [100, 110], "dec": [20, 30]}]},
        "model": {
            "bundle": str(toy_run.bundle()),
            "prior": "gaussian",
            "likelihood": {
                "family": "gaussian",
                "error_floor": 0.0,
                "zero_points": dict(zip(toy.BANDS, toy.ZERO_POINTS.tolist(), strict=True)),
            },
        },
        "uncertainty": {"depths": DEPTHS},
        "selection": [{"band": "r", "brighter_than": 20.0}, {"band": "i", "min_snr": 20}],
        "coverage": [{"bands": ["z", "y"], "missing_fraction": 0.1}],
        "partition": {"max_rows": 400, "highest_order": 8},
    }
    return parse_settings(MockConfig, {**settings, **changes}, "test")


def files(catalog: Path) -> dict[str, bytes]:
    """Every data file of a catalog."""
    found = sorted(catalog.rglob("*.parquet"))
    return {path.relative_to(catalog).as_posix(): path.read_bytes() for path in found}


def rows(catalog: Path) -> pa.Table:
    """All rows in the order of their numbers."""
    tables = [pq.read_table(path, partitioning=None) for path in sorted(catalog.rglob("*.parquet"))]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables]).sort_by("object_id")


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal byte for byte; NaN equals itself."""
    columns = zip(one.columns, other.columns, strict=True)
    return one.schema == other.schema and all(
        a.to_numpy().tobytes() == b.to_numpy().tobytes() for a, b in columns
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_mock(config(), tmp_path_factory.mktemp("mock") / "cat")


@pytest.fixture(scope="module")
def table(made) -> pa.Table:
    return rows(made.catalog)


@pytest.fixture
def threads():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_counts_and_identifiers(made, table):
    assert made.n_galaxies == N == table.num_rows and 0.01 < made.detected_fraction < 1
    assert made.n_partitions == len(files(made.catalog)) > 8
    ids = table["object_id"].to_numpy()
    assert len(np.unique(ids)) == N and ids.min() > 2**53 and ids.dtype == np.int64
    sizes = [pq.read_metadata(path).num_rows for path in made.catalog.rglob("Npix*.parquet")]
    assert max(sizes) <= 400


def test_rows_lie_in_the_footprint_in_order(made, table):
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    assert config().sky.footprint().contains(ra, dec).all()
    position = table[SPATIAL_INDEX_COLUMN].to_numpy()
    np.testing.assert_array_equal(position, compute_spatial_index(ra, dec))
    assert np.all(np.diff(position) >= 0), "numbered along the curve"
    for path in made.catalog.rglob("Npix*.parquet"):
        assert pq.read_metadata(path).row_group(0).sorting_columns[0].column_index == 0


def test_selection_and_coverage(table):
    flux = {band: table[f"flux_{band}"].to_numpy() for band in toy.BANDS}
    assert np.all(flux["r"] > 10 ** (0.4 * 2.5)) and np.all(flux["i"] >= 20 * table["flux_err_i"].to_numpy())
    missing = np.isnan(flux["z"])
    np.testing.assert_array_equal(missing, np.isnan(flux["y"]))
    np.testing.assert_array_equal(missing, table["state_z"].to_numpy() == BandState.MISSING)
    np.testing.assert_array_equal(missing, np.isnan(table["flux_err_y"].to_numpy()))
    assert abs(missing.mean() - 0.1) < 4.5 * np.sqrt(0.09 / N)
    assert not any(np.isnan(flux[band]).any() for band in "ugri")
    assert np.isnan(table["redshift"].to_numpy()).all()


def test_truth_is_that_of_the_photometry(table):
    weights = toy.arrays()
    theta = np.stack([table[f"truth_{name}"].to_numpy() for name in toy.SPACE.names], axis=1)
    expected = toy.ZERO_POINTS * (theta @ weights["matrix"].T + weights["offset"])
    for number, band in enumerate(toy.BANDS):
        true = table[f"truth_flux_{band}"].to_numpy()
        np.testing.assert_allclose(true, expected[:, number], rtol=1e-4, atol=1e-4)
    pull = (table["flux_u"].to_numpy() - table["truth_flux_u"].to_numpy()) / toy.ERRORS[0]
    # A band that selects nothing keeps the noise it was given.
    assert abs(pull.mean()) < 4.5 / np.sqrt(N) and abs(pull.std() - 1) < 4.5 / np.sqrt(2 * N)
    assert table.schema.field("truth_N").metadata == {b"unit": b"mag"}


def test_the_catalog_is_valid_hats_and_says_where_it_is_from(made):
    assert is_valid_catalog(made.catalog, strict=True)
    info = read_hats(made.catalog).catalog_info
    assert info.total_rows == N and info.catalog_name == "toy-mock"
    extra = info.extra_dict(by_alias=True)
    assert extra["popcosmos_mock"] == "toy-mock" and int(extra["popcosmos_seed"]) == 5
    assert float(extra["popcosmos_detected_fraction"]) == pytest.approx(made.detected_fraction, rel=1e-5)
    assert load_mock_config(made.catalog / "mock.yaml") == config()


def test_lsdb_opens_it_and_a_run_can_be_planned_on_it(made, table):
    lsdb = pytest.importorskip("lsdb", reason="LSDB is an extra")
    import dask

    with dask.config.set(scheduler="synchronous"):
        opened = lsdb.open_catalog(made.catalog, columns="all")
        assert len(opened.compute()) == N
        cone = opened.cone_search(ra=0.0, dec=0.0, radius_arcsec=3600.0).compute()
    ra, dec = (table[name].to_numpy() for name in ("ra", "dec"))
    near = np.hypot(((ra + 180) % 360 - 180) * np.cos(np.radians(dec)), dec) < 1.0
    assert abs(len(cone) - near.sum()) <= 2 < len(cone)
    source = SourceCatalog(made.catalog)
    assert source.is_canonical and source.bands == toy.BANDS
    assert plan_catalog(source, max_rows=500, highest_order=8, block_size=64).n_galaxies == N


def test_workers_write_the_same_bytes(made, threads, tmp_path):
    again = make_mock(config(), tmp_path / "cat", threads)
    assert files(again.catalog) == files(made.catalog) and again.n_candidates == made.n_candidates


def test_chunks_and_partitions_hold_the_same_galaxies(made, table, tmp_path, monkeypatch):
    monkeypatch.setattr(mock_task, "CHUNK_ROWS", 150)
    monkeypatch.setattr(mock_catalog, "CHUNK_ROWS", 150)
    pieces = make_mock(config(), tmp_path / "pieces")
    assert same(rows(pieces.catalog), table)
    whole = make_mock(config(partition={"max_rows": 2000, "highest_order": 4}), tmp_path / "whole")
    assert whole.n_partitions < made.n_partitions and same(rows(whole.catalog), table)


def test_parquet_files_hold_the_same_rows(table, tmp_path):
    plain = make_mock(config(), tmp_path / "plain", file_format="parquet")
    names = sorted(path.name for path in plain.catalog.iterdir())
    assert names[0] == "mock.yaml" and names[1] == "part_000000.parquet"
    assert same(rows(plain.catalog), table)


def test_a_stopped_mock_goes_on_where_it_was(made, tmp_path, monkeypatch):
    monkeypatch.setattr(mock_catalog, "CHUNK_ROWS", 500)
    real, written = mock_catalog.write_portions, []

    def stop_after_two(*job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job[2])
        return real(*job)

    monkeypatch.setattr(mock_catalog, "write_portions", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        make_mock(config(), tmp_path / "cat")
    assert not (tmp_path / "cat").exists()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("Npix*.parquet")}
    assert len(there) == sum(map(len, written))
    monkeypatch.setattr(mock_catalog, "write_portions", real)
    result = make_mock(config(), tmp_path / "cat")
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]
    assert files(result.catalog) == files(made.catalog) and result.n_candidates == made.n_candidates
    kept = {path.stat().st_mtime_ns for path in result.catalog.rglob("Npix*.parquet")}
    assert set(there.values()) <= kept, "finished files are not written again"


def test_leftovers_of_other_settings_are_not_taken(made, tmp_path):
    scratch = tmp_path / ".cat.partial"
    scratch.mkdir()
    (scratch / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="other files"):
        make_mock(config(), tmp_path / "cat")
    (scratch / "thesis.tex").unlink()
    (scratch / "fingerprint.json").write_text('{"settings": "others"}')
    (scratch / "dataset").mkdir()
    (scratch / "dataset" / "stray.parquet").touch()
    assert files(make_mock(config(), tmp_path / "cat").catalog) == files(made.catalog)


def test_nothing_is_overwritten(made, tmp_path):
    with pytest.raises(ConfigurationError, match="a new folder"):
        make_mock(config(), made.catalog)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": [{"band": "Ks", "brighter_than": 20}]}, "selection: expected bands among u, g"),
        ({"coverage": [{"bands": ["Ks"], "missing_fraction": 0.1}]}, "coverage: expected bands among u, g"),
        ({"uncertainty": {"depths": {"u": 25.0}}}, "a depth for each of the bands"),
        ({"uncertainty": {"depths": {**DEPTHS, "Ks": 22.0}}}, "a depth for each of the bands"),
        (
            {"selection": [{"band": "r", "brighter_than": 5}], "most_draws": 10_000},
            "among 16384 draws of the population; got none",
        ),
        ({"partition": {"max_rows": 1, "highest_order": 3}}, "at most max_rows = 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        make_mock(config(**changes), tmp_path / "cat")
    assert not list(tmp_path.iterdir())


def test_errors_of_a_bundle(made, table, tmp_path):
    given = ConstantUncertainty(toy.BANDS[::-1], toy.ERRORS[::-1])
    facts, arrays = uncertainty_to_bundle(given)
    save_bundle(tmp_path / "errors", {"name": "errors", **facts}, arrays)
    result = make_mock(config(uncertainty={"bundle": str(tmp_path / "errors")}), tmp_path / "cat")
    # Depths in float64 and stored errors in float32 may round apart, and with them galaxies at the limit.
    ours, theirs = rows(result.catalog), table
    equal = ours["truth_N"].to_numpy() == theirs["truth_N"].to_numpy()
    assert equal.mean() > 0.999
    np.testing.assert_allclose(ours["flux_err_u"].to_numpy(), toy.ERRORS[0], rtol=1e-6)
    facts, arrays = uncertainty_to_bundle(ConstantUncertainty(toy.BANDS[1:], toy.ERRORS[1:]))
    save_bundle(tmp_path / "fewer", {"name": "fewer", **facts}, arrays)
    with pytest.raises(BundleError, match="bands among"):
        make_mock(config(uncertainty={"bundle": str(tmp_path / "fewer")}), tmp_path / "other")


def test_partitions_are_ranges_of_numbers():
    portions = plan_portions(config())
    assert [p.first for p in portions] == np.cumsum(
        [0] + [p.partition.n_galaxies for p in portions[:-1]]
    ).tolist()
    assert all(portion.counts.sum() == portion.partition.n_galaxies for portion in portions)


@pytest.mark.slow
def test_processes_write_the_same_bytes(made, tmp_path):
    from popcosmos_hpc.campaign.cluster import open_client
    from popcosmos_hpc.config import ExecutorConfig

    with open_client(ExecutorConfig(name="local", workers=2)) as client:
        again = make_mock(config(), tmp_path / "cat", client)
    assert files(again.catalog) == files(made.catalog)
