"""A run's summaries as a HATS catalog, which LSDB opens, crosses with others and filters."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dask.distributed import Client

import popcosmos_hpc
from popcosmos_hpc.campaign.ledger import Ledger
from popcosmos_hpc.errors import ConfigurationError, LedgerError
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.hats_writer import partition_file, write_metadata, write_sorted_rows
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import open_partition
from popcosmos_hpc.survey.products import summary_table

_MARK = "popcosmos_run"  # the property that tells an export from any other catalog


@dataclass(frozen=True)
class ExportResult:
    """The exported catalog.

    Args:
        catalog: its folder.
        n_galaxies: rows.
        n_fitted: rows with a committed fit; the others are null in the columns of the fit.
    """

    catalog: Path
    n_galaxies: int
    n_fitted: int


def export(
    run_dir: str | Path, out_dir: str | Path | None = None, client: Client | None = None
) -> ExportResult:
    """Write the summaries of a run, finished or not, as a HATS catalog.

    An earlier export is replaced at the end. Partitions are those of the plan, one in memory at a time per
    worker.

    Args:
        run_dir: the run.
        out_dir: the catalog; default `catalog` in the run directory.
        client: Dask client; None works in this process.

    Raises:
        LedgerError: there is no plan, or no block is committed yet.
        ConfigurationError: `out_dir` holds something else than an earlier export, or the run itself.
    """
    run = Path(run_dir).absolute()
    out = Path(out_dir).absolute() if out_dir is not None else run / "catalog"
    _check_replaceable(run, out)
    plan = Plan.read(run / "plan.parquet")
    done = set(Ledger(run).done(plan.blocks()))
    started = [block.partition for block in plan.blocks() if block.key in done]
    if not started:
        raise LedgerError("a committed block", "none", str(run), "Run `popcosmos-hpc fit` first.")
    facts = dict(open_partition(run, started[0]).attrs)
    scratch = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    scratch.mkdir(parents=True)
    try:
        jobs = [(run, scratch, p, _fitted(p, plan.block_size, done), facts) for p in plan.partitions]
        if client is None:
            counts = [export_partition(*job) for job in jobs]
        else:
            counts: Any = client.gather([client.submit(export_partition, *job, pure=False) for job in jobs])
        n_galaxies, n_fitted = (sum(column) for column in zip(*counts, strict=True))
        levels: Any = facts.get("redshift_quantile", ())
        provenance = _provenance(run, levels) | {"popcosmos_n_fitted": n_fitted}
        write_metadata(scratch, _run_name(run), plan.partitions, provenance)
        _check_replaceable(run, out)  # again: what was free at the start may hold something now
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return ExportResult(out, n_galaxies, n_fitted)


def _fitted(partition: Partition, block_size: int, done: set[str]) -> np.ndarray:
    fitted = np.zeros(partition.n_galaxies, bool)
    for block in partition.blocks(block_size):
        fitted[block.start : block.stop] = block.key in done
    return fitted


def export_partition(
    run_dir: Path, catalog: Path, partition: Partition, fitted: np.ndarray, facts: Mapping[str, Any]
) -> tuple[int, int]:
    """Write one partition's Parquet file; returns its rows and how many of them are fitted."""
    table = summary_table(run_dir, partition, fitted, facts)
    write_sorted_rows(partition_file(catalog, partition), [table])
    return table.num_rows, int(fitted.sum())


def _run_name(run: Path) -> str:
    settings = run / "run.yaml"
    content: Any = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return str(content.get("name", run.name))


def _provenance(run: Path, levels: Sequence[float]) -> dict[str, str]:
    """What a reader of the catalog needs to find the run again: its name, digests and their meaning."""
    facts = {_MARK: _run_name(run), "popcosmos_version": popcosmos_hpc.__version__}
    if levels:
        facts["popcosmos_redshift_quantile_levels"] = " ".join(f"{level:g}" for level in levels)
    fingerprint = run / "fingerprint.json"
    if fingerprint.is_file():
        content = json.loads(fingerprint.read_text(encoding="utf-8"))
        facts["popcosmos_fingerprint"] = hashlib.sha256(
            json.dumps(content, sort_keys=True).encode()
        ).hexdigest()
    return facts


def _check_replaceable(run: Path, out: Path) -> None:
    """Refuse to replace anything but an earlier export: what is replaced is deleted."""
    place, home = out.resolve(), run.resolve()
    if place == home or place in home.parents:
        found = "the run directory" if place == home else "a folder that holds the run directory"
    elif not out.exists() or (out.is_dir() and not any(out.iterdir())) or _is_export(out):
        return
    else:
        found = "other files" if out.is_dir() else "a file"
    raise ConfigurationError(
        "no such folder yet, an empty one, or an earlier export",
        found,
        str(out),
        "Choose another --out, or move away what is there.",
    )


def _is_export(folder: Path) -> bool:
    properties = folder / "hats.properties"
    if not properties.is_file():
        return False
    lines = properties.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.partition("=")[0].strip() == _MARK for line in lines)


def _swap(scratch: Path, out: Path) -> None:
    old = scratch.with_name(f"{scratch.name}-old")
    if out.exists():
        out.rename(old)
    scratch.rename(out)
    shutil.rmtree(old, ignore_errors=True)
