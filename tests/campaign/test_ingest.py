import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dask.distributed import Client, LocalCluster
from hats import read_hats
from hats.io.validation import is_valid_catalog

from popcosmos_hpc.campaign.ingest import _client_or_local, ingest
from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.survey.canonical import BAD_COORDINATE, DUPLICATED_ID, NOT_SELECTED
from popcosmos_hpc.survey.catalog import SourceCatalog, plan_catalog
from popcosmos_hpc.survey.photometry_store import read_block, read_columns, write_photometry
from popcosmos_hpc.survey.preset import load_preset, preset_from_dict
from popcosmos_hpc.survey.staging import MALFORMED
from tests import survey_tables

SMALL = {"highest_order": 7, "max_rows": 60, "chunk_rows": 25}


@pytest.fixture(scope="module")
def client():
    with _client_or_local(None) as client:
        yield client


def rows_of(catalog: Path) -> pa.Table:
    source = SourceCatalog(catalog)
    return pa.concat_tables(source.read(low, high)[0] for low, high in source.pixel_ranges())


def spoil(data: dict) -> dict:
    """Six rows that must be refused, and six that must be kept although something is wrong with them."""
    data = {name: values.copy() for name, values in data.items()}
    data["RA"][0], data["DEC"][1], data["DEC"][2], data["RA"][3] = np.nan, 95.0, np.nan, 1e9
    data["ID"][5] = data["ID"][4]
    data["F_g"][6], data["F_g"][7], data["E_g"][8], data["E_g"][9] = np.nan, np.inf, 0.0, -1.0
    data["F_g"][10] = data["F_r"][10] = -99.0
    data["F_r"][11] = 99.0
    return data


def test_four_formats_bad_rows_and_duplicates_across_files(tmp_path, client):
    n = 60
    (tmp_path / "in").mkdir()
    parts = {}
    for number, suffix in enumerate(["parquet", "fits", "csv", "hdf5"]):
        data = survey_tables.columns(n, seed=number)
        data["ID"] = data["ID"] + np.int64(1000 * number)
        parts[suffix] = spoil(data) if number == 0 else data
    parts["csv"]["ID"][7] = parts["parquet"]["ID"][
        20
    ]  # the Parquet file comes later by name: its row is the copy
    for suffix, data in parts.items():
        survey_tables.write(tmp_path / "in" / f"t.{suffix}", data)
    with open(tmp_path / "in" / "t.csv", "a") as file:
        file.write("1,2\n")
    result = ingest(tmp_path / "in", survey_tables.two_bands(), tmp_path / "cat", client, **SMALL)
    assert result.reasons == {BAD_COORDINATE: 4, DUPLICATED_ID: 2, MALFORMED: 1}
    assert (result.n_in, result.n_kept, result.n_rejected) == (4 * n + 1, 4 * n - 6, 7)
    rejects = pq.read_table(result.rejects).to_pylist()
    copies = [(r["file"], r["row"]) for r in rejects if r["reason"] == DUPLICATED_ID]
    assert copies == [("t.parquet", 5), ("t.parquet", 20)] and len(rejects) == 7
    kept = rows_of(result.catalog)
    expected = np.concatenate([d["ID"] for d in parts.values()])
    bad = {(r["file"], r["row"]) for r in rejects}
    names = np.repeat([f"t.{suffix}" for suffix in parts], n)
    alive = [(name, k % n) not in bad for k, name in enumerate(names)]
    assert sorted(kept["object_id"].to_pylist()) == sorted(expected[alive].tolist())
    assert result.bands["g"] == {"missing": 2, "observed": 4 * n - 8, "limit": 0, "unusable": 3}
    assert result.bands["r"]["limit"] == 1
    assert is_valid_catalog(result.catalog, strict=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "scratch was left behind"


def test_one_galaxy_without_a_client(tmp_path):
    survey_tables.write(tmp_path / "one.fits", survey_tables.columns(1))
    result = ingest(tmp_path / "one.fits", survey_tables.two_bands(), tmp_path / "cat", highest_order=3)
    assert (result.n_in, result.n_kept) == (1, 1) and read_hats(result.catalog).catalog_info.total_rows == 1


def test_fewer_rows_than_workers(tmp_path):
    survey_tables.write(tmp_path / "two.csv", survey_tables.columns(2))
    where = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=False, **where) as cluster,
        Client(cluster) as client,
    ):
        result = ingest(
            tmp_path / "two.csv", survey_tables.two_bands(), tmp_path / "cat", client, highest_order=3
        )
    assert (result.n_in, result.n_kept) == (2, 2)


def test_empty_tables_are_refused(tmp_path, client):
    for suffix in ("parquet", "csv"):
        survey_tables.write(tmp_path / f"empty.{suffix}", survey_tables.columns(0))
        with pytest.raises(SchemaError, match=r"a table with rows.*got none"):
            ingest(tmp_path / f"empty.{suffix}", survey_tables.two_bands(), tmp_path / "cat", client)
    assert not (tmp_path / "cat").exists()


def test_a_table_of_only_bad_rows_says_why_and_leaves_the_rejects(tmp_path, client):
    data = survey_tables.columns(5)
    data["RA"][:] = np.nan
    survey_tables.write(tmp_path / "t.parquet", data)
    with pytest.raises(SchemaError, match="5 x right ascension"):
        ingest(tmp_path / "t.parquet", survey_tables.two_bands(), tmp_path / "cat", client)
    assert (
        pq.read_metadata(tmp_path / "cat.rejects.parquet").num_rows == 5 and not (tmp_path / "cat").exists()
    )


def test_null_ids_and_selection(tmp_path, client):
    data = survey_tables.columns(4) | {"ID": pa.array([1, None, 3, 4])}
    survey_tables.write(tmp_path / "t.parquet", data)
    preset = survey_tables.two_bands(quality="ID != 3")
    result = ingest(tmp_path / "t.parquet", preset, tmp_path / "cat", client, highest_order=3)
    assert result.n_kept == 2 and result.reasons == {NOT_SELECTED: 2}  # nothing is known of a missing id


@pytest.mark.parametrize("damage", ["truncated", "column", "unit", "suffix", "nothing"])
def test_errors_come_before_anything_is_queued(tmp_path, damage):
    class NoClient(Client):
        def __init__(self):
            pass

        def submit(self, *_, **__):
            raise AssertionError("work was queued")

        def __del__(self):
            pass

    data = survey_tables.columns(2000)
    if damage == "column":
        data["E_G"] = data.pop("E_g")
    path = survey_tables.write(tmp_path / "tile.fits", data)
    preset, error, message = survey_tables.two_bands(), SchemaError, "tile"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:90_000])
        message = r"tile\.fits.*truncated"
    elif damage == "column":
        message = "'E_g'.*nearest: 'E_G'"
    elif damage == "unit":
        from astropy.table import Table

        table = Table.read(path)
        table["F_r"].unit = "mJy"
        table.write(path, overwrite=True)
        message = "'F_r' in uJy.*mJy"
    elif damage == "suffix":
        path = path.rename(tmp_path / "tile.dat")
    else:
        (tmp_path / "empty").mkdir()
        path, error, message = tmp_path / "empty", ConfigurationError, "a table or a folder"
    with pytest.raises(error, match=message):
        ingest(path, preset, tmp_path / "cat", NoClient())


def test_a_truncated_gzip_is_named_and_nothing_is_left(tmp_path, client):
    plain = survey_tables.write(tmp_path / "tile.fits", survey_tables.columns(2000))
    packed = gzip.compress(plain.read_bytes())
    (tmp_path / "tile.fits.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SchemaError, match=r"tile\.fits\.gz"):
        ingest(tmp_path / "tile.fits.gz", survey_tables.two_bands(), tmp_path / "cat", client)
    assert {path.name for path in tmp_path.iterdir()} == {"tile.fits", "tile.fits.gz"}


def test_an_attempt_that_dies_leaves_nothing_that_the_next_could_reuse(tmp_path, client, monkeypatch):
    survey_tables.write(tmp_path / "t.parquet", survey_tables.columns(300))
    arguments = (tmp_path / "t.parquet", survey_tables.two_bands(), tmp_path / "cat", client)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hats_import.catalog.map_reduce.pq.ParquetWriter", full)
        with pytest.raises(OSError, match="No space"):
            ingest(*arguments, highest_order=5, max_rows=300)
    assert os.listdir(tmp_path) == ["t.parquet"]
    first = ingest(*arguments, highest_order=6, max_rows=100)
    sizes = [pq.read_metadata(f).num_rows for f in (first.catalog / "dataset").rglob("Npix=*.parquet")]
    assert sum(sizes) == 300 and max(sizes) <= 100
    with pytest.raises(ConfigurationError, match="a new folder"):
        ingest(*arguments)


def test_too_dense_a_sky_is_explained(tmp_path, client):
    survey_tables.write(tmp_path / "t.parquet", survey_tables.columns(50))
    with pytest.raises(ConfigurationError, match="Raise max_rows or highest_order"):
        ingest(
            tmp_path / "t.parquet",
            survey_tables.two_bands(),
            tmp_path / "cat",
            client,
            highest_order=1,
            max_rows=5,
        )


@pytest.fixture(scope="module")
def canonical_catalog(tmp_path_factory, client) -> Path:
    folder = tmp_path_factory.mktemp("canonical")
    data = survey_tables.columns(200)
    survey_tables.write(folder / "t.parquet", data)
    return ingest(folder / "t.parquet", survey_tables.two_bands(), folder / "cat", client, **SMALL).catalog


def test_plans_of_a_canonical_catalog_hold_every_row_once(tmp_path, canonical_catalog):
    everything = rows_of(canonical_catalog)
    for number, (max_rows, order) in enumerate([(40, 7), (10**6, 3)]):
        run = tmp_path / str(number)
        source = SourceCatalog(canonical_catalog)
        assert source.bands == ("g", "r")
        plan = plan_catalog(source, max_rows=max_rows, highest_order=order, block_size=16)
        assert plan.n_galaxies == 200 and max(p.n_galaxies for p in plan.partitions) <= max_rows
        assert write_photometry(run, canonical_catalog, plan) == len(plan.partitions)
        assert write_photometry(run, canonical_catalog, plan) == 0
        ids = np.concatenate([read_block(run, block)[0] for block in plan.blocks()])
        assert sorted(ids.tolist()) == sorted(everything["object_id"].to_pylist())
        truth = dict(
            zip(everything["object_id"].to_pylist(), everything["redshift_spec"].to_pylist(), strict=True)
        )
        for partition in plan.partitions:
            columns = read_columns(run, partition, ["object_id", "redshift_spec"])
            assert [truth[i] for i in columns["object_id"].tolist()] == columns["redshift_spec"].tolist()


def published_catalog(folder: Path, client, data: dict) -> Path:
    """A HATS catalog with a survey's own columns, made without this package's readers."""
    from hats_import.catalog.arguments import ImportArguments
    from hats_import.pipeline import pipeline_with_client

    survey_tables.write(folder / "raw.parquet", data)
    arguments = ImportArguments(
        output_path=folder,
        output_artifact_name="published",
        input_file_list=[folder / "raw.parquet"],
        file_reader="parquet",
        ra_column="RA",
        dec_column="DEC",
        sort_columns="ID",
        pixel_threshold=60,
        highest_healpix_order=5,
        progress_bar=False,
        tmp_dir=folder / "tmp",
    )
    pipeline_with_client(arguments, client)
    return folder / "published"


def test_a_published_hats_catalog_is_taken_as_it_is(tmp_path, client):
    data = survey_tables.columns(150)
    data["flag_g"][:10] = 1
    path = published_catalog(tmp_path, client, data)
    with pytest.raises(ConfigurationError, match="as it is"):
        ingest(path, survey_tables.two_bands(), tmp_path / "cat", client)
    with pytest.raises(ConfigurationError, match="a preset"):
        SourceCatalog(path)
    preset = survey_tables.two_bands(quality="zspec > 0.2")
    plan = plan_catalog(
        SourceCatalog(path, preset),
        max_rows=30,
        highest_order=6,
        block_size=8,
        rejects=tmp_path / "rejects.parquet",
    )
    refused = pq.read_table(tmp_path / "rejects.parquet")
    assert plan.n_galaxies + refused.num_rows == 150 and plan.n_galaxies == np.sum(data["zspec"] > 0.2)
    write_photometry(tmp_path / "run", path, plan, preset)
    ids = np.concatenate([read_block(tmp_path / "run", block)[0] for block in plan.blocks()])
    assert sorted(ids.tolist()) == sorted(data["ID"][data["zspec"] > 0.2].tolist())
    with pytest.raises(SchemaError, match="nearest"):
        SourceCatalog(path, survey_tables.two_bands(ra="RA_J2000"))


def test_repeated_ids_of_a_published_catalog_are_refused(tmp_path, client):
    data = survey_tables.columns(30)
    data["ID"][7] = data["ID"][8]
    path = published_catalog(tmp_path, client, data)
    with pytest.raises(SchemaError, match=f"1 repeated, for example {data['ID'][8]}"):
        plan_catalog(
            SourceCatalog(path, survey_tables.two_bands()), max_rows=99, highest_order=5, block_size=8
        )


def test_des_magnitudes_with_both_codes_from_hdf5_and_parquet(tmp_path, client, shared):
    folder = shared / "data" / "ingest_formats" / "des_dr2_tiny"
    bands = [{"name": b, "mag": f"mag_{b}", "err": f"magerr_{b}"} for b in "ugrizy"]
    preset = preset_from_dict(
        {
            "name": "des",
            "id": "coadd_object_id",
            "ra": "ra",
            "dec": "dec",
            "bands": bands,
            "missing_values": [-99],
            "nondetection_values": [99],
        }
    )
    catalogs = []
    for suffix in ("hdf5", "pq"):
        source = folder / f"tiny_object_catalog_for_tests_des_dr2.{suffix}"
        result = ingest(source, preset, tmp_path / suffix, client, highest_order=4)
        assert (result.n_in, result.n_kept) == (2956, 2956)
        assert result.bands["u"] == {"missing": 2956, "observed": 0, "limit": 0, "unusable": 0}
        catalogs.append(rows_of(result.catalog).to_pandas())
    assert catalogs[0].equals(catalogs[1])


def test_zcosmos(tmp_path, client, shared):
    table = shared / "data" / "zcosmos_bright20k" / "zcosmos_bright20k_with_mass.parquet"
    result = ingest(table, "zcosmos", tmp_path / "cat", client)
    assert (result.n_in, result.n_kept, result.n_rejected) == (17_352, 13_080, 4_272)
    assert result.reasons == {NOT_SELECTED: 4_272}
    assert result.bands["i"] == {"missing": 150, "observed": 12_930, "limit": 0, "unusable": 0}
    assert {name: counts["missing"] for name, counts in result.bands.items()}["NUV"] == 1_792
    assert tuple(result.bands) == load_preset("zcosmos").band_names
    kept = rows_of(result.catalog)
    raw = (
        pq.read_table(table, columns=["id_zcosmos", "zpec", "r_photzi25"]).to_pandas().set_index("id_zcosmos")
    )
    raw = raw.loc[kept["object_id"].to_pylist()]
    assert np.array_equal(kept["redshift_spec"].to_numpy(), raw["zpec"].to_numpy(np.float32))
    magnitude = 22.5 - 2.5 * np.log10(kept["flux_r"].to_numpy())
    observed = raw["r_photzi25"].to_numpy() > 0
    assert magnitude[observed] == pytest.approx(raw["r_photzi25"].to_numpy()[observed], abs=1e-5)
