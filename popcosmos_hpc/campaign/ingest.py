"""Tables of a survey to a HATS catalog of canonical photometry, through hats-import."""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask.distributed import Client, LocalCluster
from hats import read_hats
from hats.io.validation import is_valid_catalog
from hats_import.catalog.arguments import ImportArguments
from hats_import.pipeline import pipeline_with_client

from popcosmos_hpc.errors import ConfigurationError, PopCosmosError, SchemaError
from popcosmos_hpc.survey.preset import SurveyPreset, load_preset
from popcosmos_hpc.survey.readers import file_format
from popcosmos_hpc.survey.staging import (
    StagedFile,
    StagedReader,
    check_inputs,
    drop_duplicates,
    stage_file,
    write_rejects,
)

REJECTS = "rejects.parquet"


@dataclass(frozen=True)
class IngestResult:
    """What became of the rows: n_in = n_kept + n_rejected.

    Args:
        catalog: the HATS catalog.
        n_in: rows read.
        n_kept: rows in the catalog.
        n_rejected: rows in `rejects`.
        reasons: refused rows per reason.
        bands: per band, rows `missing`, `observed`, `limit` and `unusable` (observed, yet with an infinite
            flux or an error that is not positive; the fit flags such a galaxy).
        rejects: Parquet file of the refused rows; None for a HATS catalog taken as it is.
    """

    catalog: Path
    n_in: int
    n_kept: int
    n_rejected: int
    reasons: dict[str, int]
    bands: dict[str, dict[str, int]]
    rejects: Path | None


def ingest(
    inputs: str | Path | list[str | Path],
    preset: SurveyPreset | str | Path,
    out_dir: str | Path,
    client: Client | None = None,
    *,
    max_rows: int = 1_000_000,
    highest_order: int = 8,
    chunk_rows: int = 500_000,
) -> IngestResult:
    """Read tables through a preset, refuse unusable rows with a reason, and partition the rest on the sky.

    Each attempt works in a private folder beside `out_dir` and appears there at once, or not at all.

    Args:
        inputs: files, or folders of files (Parquet, FITS, CSV, HDF5).
        preset: meaning of the columns.
        out_dir: the catalog to write; must not exist.
        client: Dask client; None works in this process.
        max_rows: most rows in a partition of the catalog.
        highest_order: finest HEALPix order of a partition; each order more costs four times the memory.
        chunk_rows: rows in memory at a time, per worker.

    Raises:
        SchemaError: an input is damaged, lacks a column, has another unit; or no usable row was found.
        ConfigurationError: the preset is illegal, there is no input, `out_dir` exists, or one pixel of the
            highest order holds more than `max_rows`.
    """
    preset = preset if isinstance(preset, SurveyPreset) else load_preset(preset)
    out = Path(out_dir).absolute()
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError("a new folder", "one with content", str(out), "Name another, or remove it.")
    sources = input_files(inputs)
    preset = check_inputs(sources, preset)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with _client_or_local(client) as dask_client:
            staged = drop_duplicates(_stage(sources, preset, scratch, dask_client, chunk_rows))
            n_in, n_kept = sum(s.n_in for s in staged), sum(s.n_kept for s in staged)
            n_rejected = write_rejects(staged, scratch / REJECTS)
            if n_in != n_kept + n_rejected:
                raise PopCosmosError(f"{n_in} rows kept or refused", f"{n_kept} + {n_rejected}", str(out))
            _refuse_empty(n_in, n_kept, staged, scratch, out)
            arguments = _arguments(
                staged, preset, scratch, out.name, n_kept, max_rows, highest_order, chunk_rows
            )
            _run_import(arguments, dask_client, max_rows, highest_order)
        catalog = scratch / "catalog" / out.name
        (scratch / REJECTS).replace(catalog / REJECTS)
        if out.exists():
            out.rmdir()
        catalog.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _result(out, n_in, n_kept, n_rejected, staged, preset)


def input_files(inputs: str | Path | list[str | Path]) -> list[Path]:
    """Files to read, in a fixed order.

    Raises:
        ConfigurationError: an input does not exist, or a folder holds no table, or it is a HATS catalog.
    """
    files: list[Path] = []
    for item in [inputs] if isinstance(inputs, (str, Path)) else inputs:
        path = Path(item).absolute()
        if path.is_dir():
            if is_hats(path):
                raise ConfigurationError(
                    "tables to ingest",
                    "a HATS catalog",
                    str(path),
                    "Give it to `plan` as it is, with format: hats.",
                )
            found = sorted(file for file in path.rglob("*") if file.is_file() and file_format(file))
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise ConfigurationError("a table or a folder of tables", "none", str(path), "Check the path.")
        files += found
    return files


def is_hats(path: str | Path) -> bool:
    """Whether a folder is a HATS catalog or collection."""
    names = ("hats.properties", "properties", "collection.properties")
    return any((Path(path) / name).is_file() for name in names)


@contextmanager
def _client_or_local(client: Client | None) -> Iterator[Client]:
    if client is not None:
        yield client
        return
    # Dask opens its status server even where the dashboard is off: let it be a free local port, not 8787.
    local_port = "127.0.0.1:0"
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=local_port,
            worker_dashboard_address=local_port,
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as local,
    ):
        yield local


def _stage(
    sources: list[Path], preset: SurveyPreset, scratch: Path, client: Client, chunk_rows: int
) -> list[StagedFile]:
    (scratch / "staged").mkdir()
    targets = [str(scratch / "staged" / f"f{number:06d}.parquet") for number in range(len(sources))]
    futures = [
        client.submit(stage_file, str(source), target, preset, chunk_rows, pure=False)
        for source, target in zip(sources, targets, strict=True)
    ]
    return client.gather(futures)  # type: ignore[return-value]


def _refuse_empty(n_in: int, n_kept: int, staged: list[StagedFile], scratch: Path, out: Path) -> None:
    if n_kept:
        return
    if n_in == 0:
        raise SchemaError("a table with rows", "none", ", ".join(item.source for item in staged)[:200])
    rejects = out.with_name(f"{out.name}.{REJECTS}")
    (scratch / REJECTS).replace(rejects)
    reasons = "; ".join(f"{count} x {reason}" for reason, count in _reasons(staged).items())
    raise SchemaError(
        "at least one usable row",
        f"{n_in} refused ({reasons})",
        staged[0].source,
        f"See {rejects.name} beside the catalog's folder; check the preset's id, ra, dec and quality.",
    )


def _arguments(
    staged: list[StagedFile],
    preset: SurveyPreset,
    scratch: Path,
    name: str,
    n_kept: int,
    max_rows: int,
    highest_order: int,
    chunk_rows: int,
) -> ImportArguments:
    (scratch / "work").mkdir()
    return ImportArguments(
        output_path=scratch / "catalog",
        output_artifact_name=name,
        input_file_list=[item.path for item in staged if item.n_kept],
        file_reader=StagedReader(chunk_rows),
        ra_column="ra",
        dec_column="dec",
        sort_columns="object_id",
        pixel_threshold=max_rows,
        highest_healpix_order=highest_order,
        drop_empty_siblings=False,
        expected_total_rows=n_kept,
        tmp_dir=scratch / "work",
        resume=False,
        progress_bar=False,
        addl_hats_properties={
            "popcosmos_preset": preset.name,
            "popcosmos_bands": " ".join(preset.band_names),
        },
    )


def _run_import(arguments: ImportArguments, client: Client, max_rows: int, highest_order: int) -> None:
    try:
        pipeline_with_client(arguments, client)
    except ValueError as error:
        if "exceeds threshold" not in str(error):
            raise
        raise ConfigurationError(
            f"at most max_rows = {max_rows} rows in a pixel of highest_order = {highest_order}",
            str(error),
            "ingest",
            "Raise max_rows or highest_order.",
        ) from error


def _reasons(staged: list[StagedFile]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for item in staged:
        total.update(item.reasons)
    return dict(total)


def _result(
    out: Path,
    n_in: int,
    n_kept: int,
    n_rejected: int,
    staged: list[StagedFile],
    preset: SurveyPreset,
) -> IngestResult:
    if not is_valid_catalog(out):
        raise SchemaError("a valid HATS catalog", "an invalid one", str(out), "Remove it and ingest again.")
    catalog: Any = read_hats(out)
    written = int(catalog.catalog_info.total_rows)
    if written != n_kept:
        raise SchemaError(
            f"{n_kept} rows in the catalog", f"{written}", str(out), "Remove it and ingest again."
        )
    kinds: tuple[str, ...] = ("missing", "observed", "limit", "unusable")
    totals = [[sum(item.bands[b][k] for item in staged) for k in range(4)] for b in range(len(preset.bands))]
    bands: dict[str, dict[str, int]] = {
        name: dict(zip(kinds, counts, strict=True))
        for name, counts in zip(preset.band_names, totals, strict=True)
    }
    reasons = _reasons(staged)
    return IngestResult(out, n_in, n_kept, n_rejected, reasons, bands, out / REJECTS)
