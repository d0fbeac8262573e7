"""A HATS catalog as the input of a run: one that `ingest` wrote, or another, read through a preset."""

# hats declares more kinds of catalog than its reader returns here.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from hats import read_hats
from hats.catalog import CatalogCollection
from hats.io import paths
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN, compute_spatial_index

from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.canonical import REJECT_SCHEMA, canonicalise
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.plan import HEALPIX_ORDER, Plan, healpix_histogram, make_partitions, pixel_range
from popcosmos_hpc.survey.preset import SurveyPreset

_FIXED = ("object_id", "ra", "dec", "redshift", "redshift_err")


class SourceCatalog:
    """A HATS catalog seen as canonical rows.

    Args:
        path: catalog or collection.
        preset: meaning of the columns; not needed for a catalog that `ingest` wrote.

    Raises:
        SchemaError: there is no catalog, or it is not canonical and lacks a column of the preset.
        ConfigurationError: it is not canonical and there is no preset.
    """

    def __init__(self, path: str | Path, preset: SurveyPreset | None = None):
        self.path = Path(path)
        try:
            catalog = read_hats(self.path)
        except (OSError, ValueError, TypeError) as error:
            raise SchemaError(
                "a HATS catalog", str(error), str(path), "Run `popcosmos-hpc ingest` first."
            ) from error
        if isinstance(catalog, CatalogCollection):
            catalog = catalog.main_catalog
        self._base, self._suffix = catalog.catalog_base_dir, catalog.catalog_info.npix_suffix
        self._pixels = catalog.get_healpix_pixels()
        if not self._pixels:
            raise SchemaError("a catalog with rows", "no partition", str(path))
        self.schema = pq.read_schema(self._file(self._pixels[0]))
        names = self.schema.names
        self.is_canonical = set(_FIXED) <= set(names) and any(name.startswith("state_") for name in names)
        if not self.is_canonical and preset is None:
            raise ConfigurationError("a preset for a catalog that ingest did not write", "none", str(path))
        self.preset = None
        if not self.is_canonical and preset is not None:
            units = {
                field.name: ((field.metadata or {}).get(b"unit") or b"").decode() or None
                for field in self.schema
            }
            self.preset = preset.resolve(names)
            self.preset.check_table(units, str(path))

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in order."""
        if self.preset is not None:
            return self.preset.band_names
        return tuple(n.removeprefix("state_") for n in self.schema.names if n.startswith("state_"))

    def read(self, lowest: int, highest: int, positions_only: bool = False) -> tuple[pa.Table, pa.Table]:
        """Canonical rows of an interval of order-29 pixels, sorted by pixel, then id; and refused rows.

        Args:
            lowest: first order-29 pixel.
            highest: one past the last.
            positions_only: read no more than ids and pixels of a canonical catalog.

        Returns:
            canonical rows with the column `_healpix_29`; refused rows as in `REJECT_SCHEMA`.
        """
        tables, rejects = [], [REJECT_SCHEMA.empty_table()]
        for table in self._overlapping(lowest, highest, positions_only):
            if self.preset is not None:
                outcome = canonicalise(self.preset, table)
                table = outcome.table
                rejects.append(outcome.rejects)
            if SPATIAL_INDEX_COLUMN not in table.column_names:
                index = compute_spatial_index(table["ra"].to_numpy(), table["dec"].to_numpy())
                table = table.append_column(SPATIAL_INDEX_COLUMN, pa.array(index, pa.int64()))
            pixel = table[SPATIAL_INDEX_COLUMN].to_numpy()
            tables.append(table.filter(pa.array((pixel >= lowest) & (pixel < highest))))
        joined = pa.concat_tables(tables)
        order = [(SPATIAL_INDEX_COLUMN, "ascending"), ("object_id", "ascending")]
        return joined.sort_by(order), pa.concat_tables(rejects)

    def _overlapping(self, lowest: int, highest: int, positions_only: bool) -> Iterator[pa.Table]:
        names = [SPATIAL_INDEX_COLUMN] if SPATIAL_INDEX_COLUMN in self.schema.names else []
        columns = names + (["object_id", "ra", "dec"] if positions_only else self.schema.names)
        if self.preset is not None:
            # The pixel is computed anew from the preset's coordinates, which are the ones that count.
            columns, names = list(self.preset.required_columns()), []
        columns = list(dict.fromkeys(columns))
        clip = None
        if names:
            field = pads.field(SPATIAL_INDEX_COLUMN)
            clip = (field >= lowest) & (field < highest)
        for pixel in self._pixels:
            first, last = pixel_range(Partition(pixel.order, pixel.pixel, 0))
            if first < highest and last > lowest:
                yield pads.dataset(self._file(pixel)).to_table(columns=columns, filter=clip)

    @property
    def n_rows(self) -> int:
        """Rows in all files."""
        return sum(pq.read_metadata(self._file(pixel)).num_rows for pixel in self._pixels)

    def pixel_ranges(self) -> list[tuple[int, int]]:
        """Order-29 range of each stored partition."""
        return [pixel_range(Partition(p.order, p.pixel, 0)) for p in self._pixels]

    def _file(self, pixel) -> str:
        return str(paths.pixel_catalog_file(self._base, pixel, npix_suffix=self._suffix))


def plan_catalog(
    catalog: SourceCatalog, *, max_rows: int, highest_order: int, block_size: int, rejects: Path | None = None
) -> Plan:
    """Divide a catalog into partitions and blocks; rows that its preset refuses are left out.

    Args:
        catalog: the input of the run.
        max_rows: most galaxies in a partition.
        highest_order: finest HEALPix order of a partition.
        block_size: galaxies per block.
        rejects: file for the refused rows; only a catalog read through a preset has any.

    Raises:
        SchemaError: an id appears twice, or no row is left.
        ConfigurationError: a pixel of the highest order holds more than `max_rows`.
    """
    if not 0 <= highest_order <= HEALPIX_ORDER:
        raise ConfigurationError(f"an order in 0..{HEALPIX_ORDER}", str(highest_order), "highest_order")
    histogram = np.zeros(12 * 4**highest_order, np.int64)
    ids, n_read = [np.empty(0, np.int64)], 0
    refused = [REJECT_SCHEMA.empty_table()]
    for lowest, highest in catalog.pixel_ranges():
        table, rejected = catalog.read(lowest, highest, positions_only=True)
        histogram += healpix_histogram(table[SPATIAL_INDEX_COLUMN].to_numpy(), highest_order)
        n_read += table.num_rows + rejected.num_rows
        if catalog.preset is not None:  # ingest has compared the ids of its own catalogs
            ids.append(table["object_id"].to_numpy())
        refused.append(rejected)
    if n_read != catalog.n_rows:
        raise SchemaError(
            f"{catalog.n_rows} rows in the pixels that the catalog's index names",
            f"{n_read}",
            str(catalog.path),
            "The preset's coordinates are not those of the index: ingest the table instead.",
        )
    _refuse_duplicates(np.concatenate(ids), catalog)
    if rejects is not None:
        with replace_atomically(rejects) as partial:
            pq.write_table(pa.concat_tables(refused), partial)
    if not histogram.any():
        raise SchemaError("at least one usable row", "none", str(catalog.path), "See the rejects.")
    return Plan(tuple(make_partitions(histogram, highest_order, max_rows)), block_size)


def _refuse_duplicates(object_id: np.ndarray, catalog: SourceCatalog) -> None:
    ordered = np.sort(object_id)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        raise SchemaError(
            "ids that name one row each",
            f"{len(again)} repeated, for example {again[0]}",
            str(catalog.path),
            "Ingest the table, which keeps the first row of each id.",
        )
