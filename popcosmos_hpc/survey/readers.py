"""Chunked readers of survey tables: Parquet, FITS, CSV, HDF5.

Each knows how to describe a file from its header (columns, units, whether it is whole) and how to yield its
columns as Arrow tables with missing values as nulls. A damaged file is a SchemaError that names it; a damaged
row is passed on, for the preset to refuse.
"""

# h5py and astropy declare what a file might hold, not what was checked to be there.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false, reportReturnType=false

import csv
import gzip
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from popcosmos_hpc.errors import SchemaError


class Chunk(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        table: the asked columns, missing values as nulls.
        malformed: text of lines that could not be split into columns.
    """

    table: pa.Table
    malformed: tuple[str, ...] = ()


@runtime_checkable
class TableReader(Protocol):
    """How a file format is read."""

    def columns(self, path: Path) -> dict[str, str | None]:
        """Column names with the unit written in the file, from the header only.

        Raises:
            SchemaError: the file is damaged, truncated or holds no table.
        """
        ...

    def chunks(self, path: Path, columns: tuple[str, ...], rows: int) -> Iterator[Chunk]:
        """The asked columns, about `rows` rows at a time.

        Raises:
            SchemaError: the file is damaged.
        """
        ...


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # What astropy warns of (truncation, undefined logicals) is refused or made null here.
            warnings.simplefilter("ignore", AstropyUserWarning)
            yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        # A disk's fault (`errno` set) is no fault of the table: it stays what it is.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SchemaError("a readable table", message, str(path), "Copy the file again.") from error


class ParquetTable:
    """Parquet files."""

    def columns(self, path: Path) -> dict[str, str | None]:
        """Columns of the schema; units from the field metadata key `unit`."""
        with _naming(path):
            schema = pq.read_schema(path)
        return {field.name: _decoded((field.metadata or {}).get(b"unit")) for field in schema}

    def chunks(self, path: Path, columns: tuple[str, ...], rows: int) -> Iterator[Chunk]:
        """Record batches."""
        with _naming(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
                table = pa.Table.from_batches([batch])
                yield Chunk(table.select(columns).replace_schema_metadata())


class FitsTable:
    """FITS binary tables, plain or compressed.

    Args:
        hdu: extension name or number; default the first table.
    """

    def __init__(self, hdu: int | str | None = None):
        self.hdu = hdu

    def columns(self, path: Path) -> dict[str, str | None]:
        """Columns with TUNIT; the size of the file is compared with what its header promises."""
        with _naming(path), fits.open(path, memmap=True, character_as_bytes=True) as hdus:
            table = self._table(hdus, path)
            header, info = table.header, table.fileinfo()
            promised = info["datLoc"] + header["NAXIS1"] * header["NAXIS2"]
            found = path.stat().st_size
            if not _compressed(path) and found < promised:
                raise SchemaError(
                    f"{promised} bytes, as the header of the table says",
                    f"{found} bytes",
                    str(path),
                    "The file is truncated: copy it again.",
                )
            return {column.name: column.unit or None for column in table.columns}

    def chunks(self, path: Path, columns: tuple[str, ...], rows: int) -> Iterator[Chunk]:
        """Slices of the memory-mapped table; TNULL, NaN and undefined logicals become nulls."""
        with _naming(path), fits.open(path, memmap=not _compressed(path), character_as_bytes=True) as hdus:
            table = self._table(hdus, path)
            total = table.header["NAXIS2"]
            if total == 0:
                yield Chunk(pa.table({name: pa.array([], pa.float64()) for name in columns}))
            for start in range(0, total, rows):
                part = table.data[start : start + rows]
                yield Chunk(pa.table({name: _fits_column(part, table.columns[name]) for name in columns}))

    def _table(self, hdus: fits.HDUList, path: Path) -> Any:
        kinds = (fits.BinTableHDU, fits.TableHDU)
        if self.hdu is not None and self.hdu in hdus and isinstance(hdus[self.hdu], kinds):
            return hdus[self.hdu]
        if self.hdu is None:
            for hdu in hdus:
                if isinstance(hdu, kinds):
                    return hdu
        wanted = "a table extension" if self.hdu is None else f"a table in extension {self.hdu!r}"
        raise SchemaError(wanted, f"extensions {[hdu.name for hdu in hdus]}", str(path), "Set fits_hdu.")


class CsvTable:
    """CSV files with a header line, plain or gzipped; every cell is read as text so that no digit is lost."""

    def columns(self, path: Path) -> dict[str, str | None]:
        """Names of the header line."""
        opener = gzip.open if _compressed(path) else open
        with _naming(path), opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), None)
        if not names:
            raise SchemaError("a header line with column names", "an empty file", str(path))
        return dict.fromkeys(name.strip() for name in names)

    def chunks(self, path: Path, columns: tuple[str, ...], rows: int) -> Iterator[Chunk]:
        """Blocks of lines; a line with too few or too many cells is handed over as malformed."""
        malformed: list[str] = []

        def note(row: pacsv.InvalidRow) -> str:
            malformed.append(row.text or "")
            return "skip"

        names = list(self.columns(path))
        options = {
            "read_options": pacsv.ReadOptions(
                use_threads=False, block_size=max(1 << 20, 64 * rows), column_names=names, skip_rows=1
            ),
            "parse_options": pacsv.ParseOptions(invalid_row_handler=note),
            "convert_options": pacsv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=True,
                null_values=["", "NA", "N/A", "null", "NULL", "None", "--"],
            ),
        }
        with _naming(path), pacsv.open_csv(path, **options) as reader:
            for batch in reader:
                yield Chunk(pa.Table.from_batches([batch]), tuple(malformed))
                malformed.clear()
        if malformed:
            yield Chunk(pa.table({name: pa.array([], pa.string()) for name in columns}), tuple(malformed))


class Hdf5Table:
    """HDF5 files: a group of one-dimensional datasets of one length, or one compound dataset.

    Args:
        group: path of the group or compound dataset; default the only one there is.
    """

    def __init__(self, group: str | None = None):
        self.group = group

    def columns(self, path: Path) -> dict[str, str | None]:
        """Datasets (or fields) with the attribute `unit` or `units`."""
        with _naming(path), h5py.File(path, "r") as file:
            node = self._node(file, path)
            if isinstance(node, h5py.Dataset):
                return dict.fromkeys(node.dtype.names)
            members = _one_dimensional(node)
            lengths = {name: len(item) for name, item in members.items()}
            if len(set(lengths.values())) > 1:
                raise SchemaError("columns of one length", str(lengths)[:200], f"{path}:{node.name}")
            return {name: _hdf5_unit(item) for name, item in members.items()}

    def chunks(self, path: Path, columns: tuple[str, ...], rows: int) -> Iterator[Chunk]:
        """Slices of the datasets."""
        with _naming(path), h5py.File(path, "r") as file:
            node = self._node(file, path)
            total = len(node) if isinstance(node, h5py.Dataset) else len(node[columns[0]])
            for start in range(0, max(total, 1), rows):
                part = slice(start, start + rows)
                if isinstance(node, h5py.Dataset):
                    records = node[part]
                    arrays = {name: _arrow(records[name]) for name in columns}
                else:
                    arrays = {name: _arrow(node[name][part]) for name in columns}
                yield Chunk(pa.table(arrays))

    def _node(self, file: h5py.File, path: Path) -> h5py.Group | h5py.Dataset:
        if self.group is not None and self.group in file:
            return file[self.group]
        found = list(_tables_of(file))
        if self.group is None and len(found) == 1:
            return found[0]
        wanted = f"group {self.group!r}" if self.group else "one group of columns"
        raise SchemaError(
            wanted, f"groups {[node.name for node in found]}", str(path), "Set hdf5_group in the preset."
        )


def _tables_of(group: h5py.Group) -> Iterator[h5py.Group | h5py.Dataset]:
    if _one_dimensional(group):
        yield group
    for item in group.values():
        if isinstance(item, h5py.Group):
            yield from _tables_of(item)
        elif item.dtype.names:
            yield item


def _one_dimensional(group: h5py.Group) -> dict[str, h5py.Dataset]:
    return {
        name: item
        for name, item in group.items()
        if isinstance(item, h5py.Dataset) and item.ndim == 1 and not item.dtype.names
    }


def _hdf5_unit(item: h5py.Dataset) -> str | None:
    for key in ("unit", "units"):
        if key in item.attrs:
            return _decoded(item.attrs[key])
    return None


def _decoded(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else (None if value is None else str(value))


def _fits_column(part: fits.FITS_rec, column: fits.Column) -> pa.Array:
    values = np.asarray(part.field(column.name))
    mask = np.zeros(len(values), bool)
    if column.null is not None and values.dtype.kind in "iuf":
        # TNULL names a stored integer; astropy has applied TSCAL and TZERO to what we see.
        mask = np.isclose(values, column.null * (column.bscale or 1) + (column.bzero or 0), rtol=0, atol=0)
    if values.dtype.kind == "b":
        stored = np.asarray(part.view(np.ndarray)[column.name])
        mask = stored.view(np.uint8) == 0 if stored.dtype.itemsize == 1 else mask
    return _arrow(values, mask)


def _arrow(values: np.ndarray, mask: np.ndarray | None = None) -> pa.Array:
    values = np.ascontiguousarray(values)
    if values.dtype.kind in "SO":
        text = [item.decode(errors="replace").strip() if isinstance(item, bytes) else item for item in values]
        return pa.array(text, pa.string())
    if values.dtype.kind == "U":
        return pa.array(values.astype(object), pa.string())
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return pa.array(values, mask=mask if mask is not None and mask.any() else None)


def _compressed(path: Path) -> bool:
    return path.suffix in (".gz", ".bz2", ".xz")


_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".parq": "parquet",
    ".fits": "fits",
    ".fit": "fits",
    ".cat": "fits",
    ".csv": "csv",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}


def file_format(path: Path) -> str | None:
    """Format of a file by its name, None if unknown.

    >>> file_format(Path("tile.fits.gz")), file_format(Path("readme.txt"))
    ('fits', None)
    """
    name = path.with_suffix("") if _compressed(path) else path
    return _SUFFIXES.get(name.suffix.lower())


def table_reader(path: Path, hdf5_group: str | None = None, fits_hdu: int | str | None = None) -> TableReader:
    """Reader of a file by its name.

    Raises:
        SchemaError: the suffix is of no known format, or there is no such file.
    """
    if not path.is_file():
        raise SchemaError("a file", "none", str(path))
    kind = file_format(path)
    if kind is None:
        known = " ".join(_SUFFIXES)
        raise SchemaError(
            f"a file named {known} (or .gz)", repr(path.name), str(path), "Rename or convert it."
        )
    readers = {"parquet": ParquetTable, "csv": CsvTable}
    if kind in readers:
        return readers[kind]()
    return FitsTable(fits_hdu) if kind == "fits" else Hdf5Table(hdf5_group)
