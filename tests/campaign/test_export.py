import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats import read_hats
from hats.io.validation import is_valid_catalog
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN, compute_spatial_index

from popcosmos_hpc.campaign.export import export
from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger, Shard, new_token
from popcosmos_hpc.errors import ConfigurationError, LedgerError, Status
from popcosmos_hpc.partition import Block
from popcosmos_hpc.survey.canonical import canonicalise
from popcosmos_hpc.survey.photometry_store import read_block, write_partition
from popcosmos_hpc.survey.plan import Plan, healpix_histogram, make_partitions, pixel_range
from popcosmos_hpc.survey.posterior_store import (
    CERTIFICATE,
    BlockPosterior,
    create_partition_store,
    write_block,
)
from popcosmos_hpc.survey.products import QUANTILE_SUFFIXES
from tests import survey_tables

N, SIZE, DRAWS = 120, 16, 5
QUANTITIES = ("redshift", "log10_mass")


def commit(run: Path, block: Block) -> None:
    """Store results that can be told from the ids: redshift = id mod 1000 / 1000."""
    object_id, *_ = read_block(run, block)
    n = len(object_id)
    redshift = (object_id % 1000 / 1000.0).astype(np.float32)
    certificate = np.zeros((n, len(CERTIFICATE)), np.float32)
    certificate[:, CERTIFICATE.index("status")] = Status.NOT_CONVERGED
    certificate[:, CERTIFICATE.index("n_evaluations")] = 12_345_678
    data = BlockPosterior(
        object_id=object_id,
        theta=np.broadcast_to(redshift[:, None, None], (n, DRAWS, 1)),
        log_prior=np.zeros((n, DRAWS)),
        log_likelihood=np.zeros((n, DRAWS)),
        pool_row=np.full((n, DRAWS), -1),
        summary=redshift[:, None, None] + np.arange(2)[:, None] * 10 + np.zeros(5),
        redshift_quantiles=np.repeat(redshift[:, None], 21, axis=1),
        certificate=certificate,
    )
    ledger, token = Ledger(run), new_token()
    create_partition_store(
        run,
        block.partition,
        SIZE,
        DRAWS,
        ["redshift"],
        QUANTITIES,
        {"quantity_unit": ["", "dex(Msun)"], "redshift_quantile": list(range(21))},
    )
    shards = write_block(ledger.scratch(block, token), block, SIZE, data)
    record = BlockRecord(
        block.key, "done", 1, "abc", n, token=token,
        shards=tuple(Shard(s.relative_path, s.sha256, s.nbytes) for s in shards),
    )  # fmt: skip
    ledger.commit(block, record)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of several partitions whose last block is not fitted."""
    folder = tmp_path_factory.mktemp("export") / "run"
    data = survey_tables.columns(N)
    preset = survey_tables.two_bands(passthrough={"redshift_spec": "zspec", "status": "flag_g"})
    rows = canonicalise(preset, pa.table(data)).table
    index = compute_spatial_index(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    rows = rows.append_column(SPATIAL_INDEX_COLUMN, pa.array(index, pa.int64()))
    plan = Plan(tuple(make_partitions(healpix_histogram(index, 7), 7, 40)), SIZE)
    plan.write(folder / "plan.parquet")
    for partition in plan.partitions:
        low, high = pixel_range(partition)
        write_partition(folder, partition, rows.filter(pa.array((index >= low) & (index < high))))
    (folder / "run.yaml").write_text("name: my-run\n")
    (folder / "fingerprint.json").write_text('{"seed": 1}')
    with pytest.raises(LedgerError, match="popcosmos-hpc fit"):
        export(folder)
    for block in plan.blocks()[:-1]:
        commit(folder, block)
    return folder


@pytest.fixture(scope="module")
def catalog(run) -> Path:
    return export(run).catalog


def table(catalog: Path) -> pa.Table:
    files = sorted((catalog / "dataset").rglob("Npix=*.parquet"))
    return pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)


def test_every_row_is_there_and_belongs_to_its_id(run, catalog):
    plan = Plan.read(run / "plan.parquet")
    assert len(plan.partitions) > 2
    rows = table(catalog)
    assert rows.num_rows == N == len(set(rows["object_id"].to_pylist()))
    fitted = rows.filter(rows["status"].is_valid())
    assert rows.num_rows - fitted.num_rows == plan.blocks()[-1].n_galaxies
    expected = fitted["object_id"].to_numpy() % 1000 / 1000
    for suffix in QUANTILE_SUFFIXES:
        assert fitted[f"redshift_{suffix}"].to_numpy() == pytest.approx(expected, abs=2e-4)
        assert fitted[f"log10_mass_{suffix}"].to_numpy() == pytest.approx(expected + 10, abs=2e-3)
    assert np.array(fitted["redshift_quantiles"].to_pylist())[:, 7] == pytest.approx(expected, abs=1e-4)
    assert set(fitted["n_evaluations"].to_pylist()) == {12_345_678}
    assert set(fitted["status"].to_pylist()) == {int(Status.NOT_CONVERGED)}
    unfitted = rows.filter(rows["status"].is_null())
    assert (
        unfitted["redshift_q50"].null_count == unfitted["redshift_quantiles"].null_count == unfitted.num_rows
    )
    truth = dict(zip(*(survey_tables.columns(N)[name].tolist() for name in ("ID", "zspec")), strict=True))
    assert [truth[i] for i in rows["object_id"].to_pylist()] == rows["redshift_spec"].to_pylist()
    assert rows["input_status"].null_count == 0, "a passed-through column gives way to the fit's"


def test_the_catalog_is_valid_hats_with_provenance(run, catalog):
    assert is_valid_catalog(catalog, strict=True)
    info = read_hats(catalog).catalog_info
    assert info.total_rows == N and info.catalog_name == "my-run"
    extra = info.extra_dict(by_alias=True)
    assert extra["popcosmos_run"] == "my-run" and len(extra["popcosmos_fingerprint"]) == 64
    assert len(extra["popcosmos_redshift_quantile_levels"].split()) == 21
    pixels = {(p.order, p.pixel) for p in read_hats(catalog).get_healpix_pixels()}
    assert pixels == {(p.order, p.pixel) for p in Plan.read(run / "plan.parquet").partitions}
    assert pq.read_schema(next((catalog / "dataset").rglob("Npix=*"))).field("log10_mass_q50").metadata == {
        b"unit": b"dex(Msun)"
    }


def test_exporting_again_replaces_the_catalog(run, tmp_path):
    first = export(run, tmp_path / "cat")
    again = export(run, tmp_path / "cat")
    assert first == again and first.n_galaxies == N and first.n_fitted < N
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]


@pytest.mark.parametrize("what", ["files", "another catalog", "a file", "the run", "its parent", "a link"])
def test_only_an_earlier_export_is_replaced(run, catalog, tmp_path, what):
    out = tmp_path / "out"
    if what == "files":
        out.mkdir()
        (out / "thesis.tex").touch()
    elif what == "another catalog":  # as ingest writes it: HATS, but no export
        shutil.copytree(catalog, out)
        text = (out / "hats.properties").read_text()
        (out / "hats.properties").write_text(text.replace("popcosmos_run=", "about_popcosmos_run="))
    elif what == "a file":
        out.touch()
    elif what == "a link":
        out.symlink_to(run)
    else:
        out = run if what == "the run" else run.parent
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigurationError, match="earlier export"):
        export(run, out)
    assert out.exists() and sorted(out.rglob("*")) == before


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert is_valid_catalog(export(run, tmp_path / "out").catalog)


def test_a_failed_export_leaves_the_old_one(run, tmp_path, monkeypatch):
    export(run, tmp_path / "cat")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("popcosmos_hpc.survey.hats_writer.write_parquet_metadata", full)
    with pytest.raises(OSError, match="No space"):
        export(run, tmp_path / "cat")
    assert [path.name for path in tmp_path.iterdir()] == ["cat"] and is_valid_catalog(tmp_path / "cat")


def test_a_store_of_other_galaxies_is_refused(run, tmp_path):
    import zarr

    shutil.copytree(run, tmp_path / "run")
    plan = Plan.read(tmp_path / "run" / "plan.parquet")
    group = zarr.open_group(tmp_path / "run" / "posterior" / f"{plan.partitions[0].key}.zarr", mode="r+")
    group["object_id"][0] = 7
    with pytest.raises(LedgerError, match="other object ids"):
        export(tmp_path / "run")


def test_lsdb_opens_filters_and_crosses_the_catalog(run, catalog):
    lsdb = pytest.importorskip("lsdb", reason="LSDB is an extra")
    import dask

    with dask.config.set(scheduler="synchronous"):
        opened = lsdb.open_catalog(catalog, columns="all")
        assert len(opened.compute()) == N
        rows = table(catalog).to_pandas()
        cone = opened.cone_search(ra=0.2, dec=0.1, radius_arcsec=1800.0).compute()
        distance = np.hypot((rows["ra"] - 0.2 + 180) % 360 - 180, rows["dec"] - 0.1)
        assert set(cone["object_id"]) == set(rows["object_id"][distance < 0.5]) and 0 < len(cone) < N
        bright = opened.query("redshift_q50 < 0.05").compute()
        assert set(bright["object_id"]) == set(rows["object_id"][rows["redshift_q50"] < 0.05])
        data = survey_tables.columns(N)
        frame = pa.table({"id": data["ID"], "ra": data["RA"], "dec": data["DEC"]}).to_pandas()
        other = lsdb.from_dataframe(
            frame, ra_column="ra", dec_column="dec", catalog_name="input", highest_order=4
        )
        crossed = opened.crossmatch(
            other, radius_arcsec=0.1, suffixes=("", "_input"), suffix_method="overlapping_columns"
        ).compute()
        same = (
            crossed["object_id"].to_numpy()
            == crossed[next(c for c in crossed if c.startswith("id"))].to_numpy()
        )
        assert len(crossed) == N and same.all()
