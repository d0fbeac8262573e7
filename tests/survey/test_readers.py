from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from popcosmos_hpc.errors import SchemaError
from popcosmos_hpc.survey.canonical import canonicalise
from popcosmos_hpc.survey.readers import table_reader
from tests import survey_tables

FORMATS = ("parquet", "csv", "fits", "hdf5")
PRESET = survey_tables.two_bands()


COLUMNS = PRESET.required_columns()


def read(path: Path, names=COLUMNS, rows=7, **options) -> tuple[pa.Table, list[str]]:
    reader = table_reader(path, **options)
    chunks = list(reader.chunks(path, tuple(names), rows))
    return pa.concat_tables([c.table for c in chunks]), [text for c in chunks for text in c.malformed]


def same_rows(first: pa.Table, second: pa.Table) -> bool:
    """Equality where NaN equals NaN."""
    return first.schema == second.schema and first.to_pandas().equals(second.to_pandas())


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_formats_give_the_same_canonical_rows(tmp_path, suffix):
    data = survey_tables.columns(20)
    path = survey_tables.write(tmp_path / f"t.{suffix}", data)
    assert set(table_reader(path).columns(path)) == set(data)
    table, malformed = read(path)
    expected = canonicalise(PRESET, pa.table(data)).table
    assert same_rows(canonicalise(PRESET, table).table, expected) and not malformed
    assert expected["object_id"].to_pylist() == data["ID"].tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_tables_without_rows(tmp_path, suffix):
    path = survey_tables.write(tmp_path / f"t.{suffix}", survey_tables.columns(0))
    table_reader(path).columns(path)
    assert sum(chunk.table.num_rows for chunk in table_reader(path).chunks(path, COLUMNS, 5)) == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_named(tmp_path, suffix):
    path = survey_tables.write(tmp_path / f"tile7.{suffix}", survey_tables.columns(3000))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if suffix == "csv":  # half a CSV is a table; its torn line is a bad row
        assert read(path, rows=100_000)[0].num_rows < 3000
        return
    with pytest.raises(SchemaError, match="tile7"):
        table_reader(path).columns(path)
        read(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_noise_are_named(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(b"\xff\xfe\x00garbage" * 100)
    with pytest.raises(SchemaError, match="noise"):
        table_reader(path).columns(path)


def test_unknown_suffix_and_absent_file(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SchemaError, match=r"a\.txt"):
        table_reader(tmp_path / "a.txt")
    with pytest.raises(SchemaError, match=r"b\.csv"):
        table_reader(tmp_path / "b.csv")


def test_fits_masks_survive(tmp_path):
    path = tmp_path / "masked.fits"
    mask = [False, True, False]
    table = Table(
        {
            "i": MaskedColumn(np.array([1, 2, 3], np.int32), mask=mask, fill_value=-7),
            "f": MaskedColumn(np.array([1.0, 2.0, 3.0], np.float32), mask=mask),
            "t": np.array(["aa", "b", ""]),
            "b": np.array([True, False, True]),
        }
    )
    table["u"] = np.array([1, 2**63 + 5, 3], np.uint64)
    table.write(path)
    with fits.open(path) as hdus:
        assert hdus[1].columns["i"].null is not None
    columns, _ = read(path, ("i", "f", "t", "b", "u"), rows=2)
    assert columns["i"].to_pylist() == [1, None, 3]
    assert columns["f"].is_null(nan_is_null=True).to_pylist() == mask
    assert columns["t"].to_pylist() == ["aa", "b", ""] and columns["b"].to_pylist() == [True, False, True]
    assert columns["u"].to_pylist() == [1, 2**63 + 5, 3]


def test_fits_scaled_integers_and_undefined_logicals(tmp_path):
    path = tmp_path / "scaled.fits"
    flux = fits.Column("f", "J", null=-999, array=np.array([100, -999], np.int32))
    logical = fits.Column("b", "L", array=np.array([True, False]))
    table = fits.BinTableHDU.from_columns([flux, logical])
    table.header["TSCAL1"], table.header["TZERO1"] = 0.01, 5.0
    table.writeto(path)
    with fits.open(path) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    content = bytearray(path.read_bytes())
    content[start + 9] = 0  # the second logical: neither T nor F
    path.write_bytes(bytes(content))
    columns, _ = read(path, ("f", "b"))
    assert columns["f"].to_pylist() == [pytest.approx(6.0), None] and columns["b"].to_pylist() == [True, None]


def test_fits_units_extensions_and_compression(tmp_path):
    path = tmp_path / "two.fits.gz"
    first, second = Table({"a": [1.0]}), Table({"f": [1.0, 2.0]}, units={"f": "uJy"})
    fits.HDUList(
        [fits.PrimaryHDU(), fits.BinTableHDU(first, name="ONE"), fits.BinTableHDU(second, name="TWO")]
    ).writeto(path)
    assert table_reader(path).columns(path) == {"a": None}
    assert table_reader(path, fits_hdu="TWO").columns(path) == {"f": "uJy"}
    assert read(path, ("f",), fits_hdu=2)[0]["f"].to_pylist() == [1.0, 2.0]
    with pytest.raises(SchemaError, match="ONE"):
        table_reader(path, fits_hdu="THREE").columns(path)


def test_hdf5_groups_compounds_and_units(tmp_path):
    path = tmp_path / "t.hdf5"
    records = np.zeros(3, [("id", "i8"), ("f", "f4")])
    with h5py.File(path, "w") as file:
        file["a/deep/f"] = np.arange(3.0)
        file["a/deep/f"].attrs["unit"] = "nJy"
        file["a/deep/cube"] = np.zeros((3, 2))
        file["table"] = records
    with pytest.raises(SchemaError, match="hdf5_group"):
        table_reader(path).columns(path)
    assert table_reader(path, "a/deep").columns(path) == {"f": "nJy"}
    assert table_reader(path, "table").columns(path) == {"id": None, "f": None}
    assert read(path, ("id",), hdf5_group="table")[0]["id"].to_pylist() == [0, 0, 0]
    with h5py.File(path, "a") as file:
        file["a/deep/g"] = np.arange(4.0)
    with pytest.raises(SchemaError, match="one length"):
        table_reader(path, "a/deep").columns(path)


def test_parquet_units(tmp_path):
    path = tmp_path / "t.parquet"
    field = pa.field("f", pa.float32(), metadata={"unit": "uJy"})
    pq.write_table(pa.table({"f": [1.0]}, schema=pa.schema([field])), path)
    assert table_reader(path).columns(path) == {"f": "uJy"}


def test_csv_bad_cells_are_missing_and_bad_lines_are_handed_over(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a, b\n9007199254740993,1.5\nx,oops\n1\n2,3,4\n-99,NA\n")
    table, malformed = read(path, ("a", "b"))
    assert table["a"].to_pylist() == ["9007199254740993", "x", "-99"]
    assert table["b"].to_pylist() == ["1.5", "oops", None] and malformed == ["1", "2,3,4"]
