import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN, compute_spatial_index

from popcosmos_hpc.errors import LedgerError, SchemaError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.canonical import canonicalise
from popcosmos_hpc.survey.photometry_store import (
    passthrough_names,
    read_block,
    read_columns,
    store_path,
    write_partition,
)
from tests import survey_tables

N = 50


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Canonical rows with one missing band and a text column."""
    data = survey_tables.columns(N)
    data["F_g"][3] = np.nan
    data["name"] = np.array([f"galáxia {k}" for k in range(N)])
    data["kind"] = pa.array([None, *range(1, N)], pa.int64())
    passthrough = [
        {"name": "redshift_spec", "column": "zspec"},
        {"name": "name", "column": "name", "type": "string"},
        {"name": "kind", "column": "kind", "type": "int64"},
    ]
    rows = canonicalise(survey_tables.two_bands(passthrough=passthrough), pa.table(data)).table
    index = compute_spatial_index(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    return rows.append_column(SPATIAL_INDEX_COLUMN, pa.array(index, pa.int64()))


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = [str(file.relative_to(folder)).encode() + file.read_bytes() for file in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_blocks_return_what_was_written_in_a_fixed_order(tmp_path, table):
    partition = Partition(0, 4, N)
    write_partition(tmp_path, partition, table)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(N)))
    write_partition(tmp_path / "other", partition, shuffled)
    assert digest(store_path(tmp_path, partition)) == digest(store_path(tmp_path / "other", partition))
    ordered = table.sort_by([(SPATIAL_INDEX_COLUMN, "ascending"), ("object_id", "ascending")])
    first, second, *_ = partition.blocks(20)
    object_id, ra, dec, photometry = read_block(tmp_path, second, ["r", "g"])
    assert object_id.tolist() == ordered["object_id"].to_pylist()[20:40]
    assert ra.tolist() == ordered["ra"].to_pylist()[20:40] and dec.dtype == np.float64
    assert photometry.flux.shape == (20, 2) and photometry.flux.dtype == np.float32
    assert photometry.flux[:, 0].tolist() == ordered["flux_r"].to_pylist()[20:40]
    assert np.isnan(photometry.redshift).all()
    for block in (first, second):
        _, _, _, photometry = read_block(tmp_path, block)
        missing = photometry.state == BandState.MISSING
        assert (photometry.flux[missing] == 0).all() and (photometry.flux_err[missing] == 1).all()


def test_columns_text_and_nulls_come_back(tmp_path, table):
    partition = Partition(0, 4, N)
    write_partition(tmp_path, partition, table)
    ordered = table.sort_by([(SPATIAL_INDEX_COLUMN, "ascending"), ("object_id", "ascending")])
    assert passthrough_names(tmp_path, partition) == ("redshift_spec", "name", "kind")
    columns = read_columns(tmp_path, partition, ["name", "kind", "redshift_spec", "state"])
    assert columns["name"].tolist() == ordered["name"].to_pylist()
    assert np.sum(np.isnan(columns["kind"])) == 1 and columns["state"].shape == (N, 2)
    with pytest.raises(SchemaError, match="redshift_spec"):
        read_columns(tmp_path, partition, ["redshift"[:-1]])


def test_writing_again_keeps_what_is_there(tmp_path, table):
    partition = Partition(0, 4, N)
    path = write_partition(tmp_path, partition, table)
    before = (path / "zarr.json").stat().st_mtime_ns
    write_partition(tmp_path, partition, table)
    assert (path / "zarr.json").stat().st_mtime_ns == before and not list((tmp_path / "scratch").iterdir())


def test_other_rows_than_planned_are_refused(tmp_path, table):
    with pytest.raises(SchemaError, match="51 rows"):
        write_partition(tmp_path, Partition(0, 4, N + 1), table)


def test_absent_bands_and_partitions_are_named(tmp_path, table):
    partition = Partition(0, 4, N)
    with pytest.raises(LedgerError, match="popcosmos-hpc plan"):
        read_block(tmp_path, partition.blocks(10)[0])
    write_partition(tmp_path, partition, table)
    with pytest.raises(SchemaError, match="no i among g, r"):
        read_block(tmp_path, partition.blocks(10)[0], ["g", "i"])


def test_a_failed_write_leaves_nothing(tmp_path, table, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("popcosmos_hpc.survey.photometry_store.sync_tree", full)
    with pytest.raises(OSError, match="No space"):
        write_partition(tmp_path, Partition(0, 4, N), table)
    assert not store_path(tmp_path, Partition(0, 4, N)).exists() and not list(
        (tmp_path / "scratch").iterdir()
    )
    shutil.rmtree(tmp_path)
