"""From input files to canonical Parquet files in a scratch folder, each input read exactly once.

hats-import reads its input twice, once to count pixels and once to split; reading the published file twice
through a preset would cost more than the copy. The copy also lets ids be compared across files before
anything is split.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats_import.catalog.file_readers import InputReader

from popcosmos_hpc.survey.canonical import (
    DUPLICATED_ID,
    REJECT_SCHEMA,
    canonical_schema,
    canonicalise,
    count_states,
)
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.preset import SurveyPreset
from popcosmos_hpc.survey.readers import Chunk, table_reader

MALFORMED = "line cannot be split into the header's columns"
_BUCKET_ROWS = 50_000_000


@dataclass(frozen=True)
class StagedFile:
    """What became of one input file.

    Args:
        source: the input.
        path: its canonical rows (Parquet); `.ids.npy`, `.rows.npy` and `.rejects.parquet` lie beside it.
        n_in: rows in the input.
        n_kept: canonical rows.
        reasons: number of refused rows per reason.
        bands: per band, kept rows that are missing, observed, limits, observed but unusable.
    """

    source: str
    path: str
    n_in: int
    n_kept: int
    reasons: dict[str, int]
    bands: tuple[tuple[int, int, int, int], ...]

    def beside(self, suffix: str) -> Path:
        """A file beside the canonical rows."""
        return Path(self.path).with_suffix(suffix)


def check_inputs(sources: list[Path], preset: SurveyPreset) -> SurveyPreset:
    """Check the headers of all inputs against the preset; the preset with its column patterns resolved.

    Raises:
        SchemaError: a file is damaged, lacks a column or writes another unit on one.
    """
    resolved = preset
    for number, source in enumerate(sources):
        columns = table_reader(source, preset.hdf5_group, preset.fits_hdu).columns(source)
        if number == 0:
            resolved = preset.resolve(columns)
        resolved.check_table(columns, str(source))
    return resolved


def stage_file(source: str, path: str, preset: SurveyPreset, chunk_rows: int) -> StagedFile:
    """Read one input through a preset; may be repeated, the outcome replaces an earlier one.

    Args:
        source: input file.
        path: Parquet file to write.
        preset: resolved by `check_inputs`.
        chunk_rows: rows in memory at a time.

    Raises:
        SchemaError: the file is damaged.
    """
    reader = table_reader(Path(source), preset.hdf5_group, preset.fits_hdu)
    staged = StagedFile(source, path, 0, 0, {}, ())
    reasons: Counter[str] = Counter()
    n_in, ids, rows = 0, [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    bands = np.zeros((len(preset.bands), 4), int)
    with (
        replace_atomically(Path(path)) as kept_file,
        replace_atomically(staged.beside(".rejects.parquet")) as rejects_file,
        pq.ParquetWriter(kept_file, canonical_schema(preset)) as kept_writer,
        pq.ParquetWriter(rejects_file, REJECT_SCHEMA) as rejects_writer,
    ):
        for chunk in reader.chunks(Path(source), preset.required_columns(), chunk_rows):
            outcome = canonicalise(preset, chunk.table)
            kept_writer.write_table(outcome.table)
            rejects = pa.concat_tables([_placed(outcome.rejects, source, n_in), _malformed(chunk, source)])
            rejects_writer.write_table(rejects)
            reasons.update(rejects["reason"].to_pylist())
            ids.append(outcome.table["object_id"].to_numpy())
            rows.append(outcome.row + n_in)
            bands += count_states(outcome.table)
            n_in += chunk.table.num_rows + len(chunk.malformed)
    object_id = np.concatenate(ids)
    np.save(staged.beside(".ids.npy"), object_id)
    np.save(staged.beside(".rows.npy"), np.concatenate(rows))
    return StagedFile(source, path, n_in, len(object_id), dict(reasons), tuple(_counts(bands)))


def _placed(rejects: pa.Table, source: str, first_row: int) -> pa.Table:
    rows = pa.array(rejects["row"].to_numpy() + first_row)
    rejects = rejects.set_column(0, "file", pa.array([Path(source).name] * len(rows), pa.string()))
    return rejects.set_column(1, "row", rows)


def _malformed(chunk: Chunk, source: str) -> pa.Table:
    count = len(chunk.malformed)
    columns = {
        "file": [Path(source).name] * count,
        "row": [None] * count,
        "object_id": [text[:80] for text in chunk.malformed],
        "ra": [None] * count,
        "dec": [None] * count,
        "reason": [MALFORMED] * count,
    }
    return pa.table(columns, schema=REJECT_SCHEMA)


def drop_duplicates(staged: list[StagedFile]) -> list[StagedFile]:
    """Refuse every appearance of an id but the first, over all files in order; returns the files' new counts.

    The positions are written beside each staged file, where `StagedReader` and `write_rejects` find them.
    Ids are compared in buckets, so that memory stays bounded whatever the survey.
    """
    total = sum(item.n_kept for item in staged)
    buckets = total // _BUCKET_ROWS + 1
    dropped: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in staged]
    for bucket in range(buckets):
        parts = []
        for number, item in enumerate(staged):
            object_id = np.load(item.beside(".ids.npy"), mmap_mode="r")
            position = np.flatnonzero(object_id % buckets == bucket)
            parts.append((object_id[position], np.full(len(position), number), position))
        object_id, number, position = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(object_id, kind="stable")
        again = order[1:][object_id[order][1:] == object_id[order][:-1]]
        for index in np.unique(number[again]):
            dropped[index].append(position[again[number[again] == index]])
    return [_without(item, np.sort(np.concatenate(p))) for item, p in zip(staged, dropped, strict=True)]


def _without(item: StagedFile, dropped: np.ndarray) -> StagedFile:
    np.save(item.beside(".dropped.npy"), dropped)
    if not len(dropped):
        return item
    rows = _dropped_rows(item)
    bands = tuple(_counts(np.array(item.bands) - count_states(rows)))
    reasons = item.reasons | {DUPLICATED_ID: len(dropped)}
    return replace(item, n_kept=item.n_kept - len(dropped), reasons=reasons, bands=bands)


def _counts(bands: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    return ((missing, observed, limit, unusable) for missing, observed, limit, unusable in bands.tolist())


def _dropped_rows(item: StagedFile) -> pa.Table:
    dropped, start, found = np.load(item.beside(".dropped.npy")), 0, []
    with pq.ParquetFile(item.path) as file:
        for batch in file.iter_batches():
            inside = dropped[(dropped >= start) & (dropped < start + batch.num_rows)]
            found.append(batch.take(pa.array(inside - start)))
            start += batch.num_rows
        return pa.Table.from_batches(found, schema=file.schema_arrow)


class StagedReader(InputReader):
    """hats-import's view of a staged file: its canonical rows without the duplicated ids.

    Args:
        chunksize: rows in memory at a time.
    """

    def __init__(self, chunksize: int):
        self.chunksize = chunksize

    def read(self, input_file, read_columns=None) -> Iterator[pa.Table]:  # type: ignore[override]
        """Yield Arrow tables of the asked columns."""
        path = Path(os.fspath(input_file))
        dropped = np.load(path.with_suffix(".dropped.npy"))
        start = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=self.chunksize, columns=read_columns):
                keep = np.ones(batch.num_rows, bool)
                inside = (dropped >= start) & (dropped < start + batch.num_rows)
                keep[dropped[inside] - start] = False
                start += batch.num_rows
                yield pa.Table.from_batches([batch]).filter(pa.array(keep))


def write_rejects(staged: list[StagedFile], path: Path) -> int:
    """Join the refused rows of all files, duplicated ids included, into one file; returns their number."""
    total = 0
    with replace_atomically(path) as partial, pq.ParquetWriter(partial, REJECT_SCHEMA) as writer:
        for item in staged:
            for table in (pq.read_table(item.beside(".rejects.parquet")), _duplicates(item)):
                writer.write_table(table)
                total += table.num_rows
    return total


def _duplicates(item: StagedFile) -> pa.Table:
    dropped = np.load(item.beside(".dropped.npy"))
    if not len(dropped):
        return REJECT_SCHEMA.empty_table()
    rows = _dropped_rows(item)
    columns = {
        "file": pa.array([Path(item.source).name] * len(dropped)),
        "row": pa.array(np.load(item.beside(".rows.npy"))[dropped]),
        "object_id": rows["object_id"].cast(pa.string()),
        "ra": rows["ra"],
        "dec": rows["dec"],
        "reason": pa.array([DUPLICATED_ID] * len(dropped)),
    }
    return pa.table(columns, schema=REJECT_SCHEMA)
