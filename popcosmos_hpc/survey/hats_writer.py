"""A HATS catalog written file by file: the partitions anywhere and in any order, the metadata at the end."""

# hats declares the properties of a catalog under their names in files.
# pyright: reportCallIssue=false

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import PartitionInfo, TableProperties
from hats.io import paths, write_parquet_metadata
from hats.io.validation import is_valid_catalog
from hats.pixel_math import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN

import popcosmos_hpc
from popcosmos_hpc.errors import SchemaError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.plan import HEALPIX_ORDER

_MOST_PARTITIONS_IN_METADATA = 50_000


def partition_file(catalog: Path, partition: Partition) -> Path:
    """Where a partition's rows lie in a catalog."""
    pixel = HealpixPixel(partition.order, partition.pixel)
    return Path(str(paths.pixel_catalog_file(catalog, pixel)))


def write_sorted_rows(path: Path, tables: Iterable[pa.Table], facts: Mapping[str, str] | None = None) -> int:
    """Write tables, one row group each, as a Parquet file that appears as a whole; returns its rows.

    Args:
        path: the file.
        tables: at least one, of the same columns, sorted by `_healpix_29` and id over all of them.
        facts: kept in the file's own metadata; read once all tables are written.
    """
    remaining, n_rows = iter(tables), 0
    table = next(remaining)
    keys = [(SPATIAL_INDEX_COLUMN, "ascending"), ("object_id", "ascending")]
    order = pq.SortingColumn.from_ordering(table.schema, keys)
    with (
        replace_atomically(path) as partial,
        pq.ParquetWriter(partial, table.schema, compression="zstd", sorting_columns=order) as writer,
    ):
        while table is not None:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            n_rows, table = n_rows + table.num_rows, next(remaining, None)
        writer.add_key_value_metadata(dict(facts or {}))
    return n_rows


def write_metadata(
    catalog: Path, name: str, partitions: Sequence[Partition], provenance: Mapping[str, str | int | float]
) -> None:
    """Make a HATS catalog of a folder in which the files of all partitions lie.

    Args:
        catalog: the folder.
        name: of the catalog.
        partitions: all of them, with their rows.
        provenance: properties beside those of the format.

    Raises:
        SchemaError: the files hold another number of rows, or the catalog is not valid.
    """
    info = PartitionInfo.from_healpix([HealpixPixel(p.order, p.pixel) for p in partitions])
    info.write_to_file(paths.get_partition_info_pointer(catalog))
    n_rows = sum(partition.n_galaxies for partition in partitions)
    written = write_parquet_metadata(catalog, create_metadata=len(partitions) <= _MOST_PARTITIONS_IN_METADATA)
    if written != n_rows:
        raise SchemaError(
            f"{n_rows} rows in the catalog's files", f"{written}", str(catalog), "Write it again."
        )
    properties = TableProperties(
        catalog_name=name,
        catalog_type="object",
        total_rows=n_rows,
        ra_column="ra",
        dec_column="dec",
        hats_col_healpix=SPATIAL_INDEX_COLUMN,
        hats_col_healpix_order=HEALPIX_ORDER,
        hats_cols_sort="object_id",
        hats_order=info.get_highest_order(),
        hats_max_rows=max(partition.n_galaxies for partition in partitions),
        moc_sky_fraction=f"{info.calculate_fractional_coverage():0.5f}",
        hats_npix_suffix=".parquet",
        **TableProperties.new_provenance_dict(
            catalog, builder=f"popcosmos-hpc v{popcosmos_hpc.__version__}", **provenance
        ),
    )
    properties.to_properties_file(catalog)
    if not is_valid_catalog(catalog):
        raise SchemaError("a valid HATS catalog", "an invalid one", str(catalog), "Please report it.")
