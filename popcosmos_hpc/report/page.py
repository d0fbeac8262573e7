"""The report: one HTML page that needs nothing but itself."""

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2

from popcosmos_hpc.errors import Status
from popcosmos_hpc.report.audit import audit_section
from popcosmos_hpc.report.certificates import certificates_section, status_counts
from popcosmos_hpc.report.metrics import PointMetrics
from popcosmos_hpc.report.photo_z import headline, photo_z_section
from popcosmos_hpc.report.population import population_section
from popcosmos_hpc.report.provenance import provenance_section
from popcosmos_hpc.report.run_data import RunData, read_run_data
from popcosmos_hpc.report.section import SIGMA, Section, duration, in_words, number, percent, plural
from popcosmos_hpc.report.sed_fits import sed_fits_section
from popcosmos_hpc.report.throughput import throughput_section

logger = logging.getLogger(__name__)

SECTIONS: tuple[Callable[[RunData], Section], ...] = (
    photo_z_section,
    population_section,
    sed_fits_section,
    certificates_section,
    audit_section,
    throughput_section,
    provenance_section,
)


class Tile(NamedTuple):
    """A number of the page's head, its name, and what to know about it."""

    value: str
    name: str
    note: str = ""


def write_report(run_dir: Path | str, out: Path | str | None = None, truth: Path | str | None = None) -> Path:
    """Judge a run, finished or not, in one self-contained HTML page.

    Args:
        run_dir: the run.
        out: where to write; default `report.html` in the run.
        truth: Parquet table of `object_id` and known values (`redshift_spec`, `<quantity>_true`);
            default, columns of those names that passed through ingest.

    Returns:
        Path of the page.

    Raises:
        LedgerError: there is no run, or nothing of it is finished.
        SchemaError: the truth table has no object_id.
    """
    run = read_run_data(Path(run_dir), None if truth is None else Path(truth))
    page = render(run, tuple(section(run) for section in SECTIONS))
    path = write_page(page, Path(run_dir) / "report.html" if out is None else Path(out))
    logger.info("report of %d galaxies written to %s", run.n_galaxies, path)
    return path


def write_page(page: str, path: Path) -> Path:
    """Put a page in its place, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def render(run: RunData, sections: tuple[Section, ...]) -> str:
    """The page of a run as HTML text."""
    return render_page(
        name=run.config.get("name", run.run_dir.name),
        subtitle=_subtitle(run),
        tiles=tiles(run),
        warnings=_warnings(run),
        sections=sections,
        version=str(run.fingerprint.get("code", "")),
    )


def render_page(
    name: str,
    subtitle: str,
    tiles: tuple[Tile, ...],
    warnings: tuple[str, ...],
    sections: tuple[Section, ...],
    version: str,
) -> str:
    """A page as HTML text: a head with tiles and warnings, and sections."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("popcosmos_hpc.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        name=name,
        subtitle=subtitle,
        tiles=tiles,
        warnings=warnings,
        sections=sections,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version,
    )


def tiles(run: RunData) -> tuple[Tile, ...]:
    """The key numbers."""
    counts = status_counts(run)
    passed, found = counts.get(Status.OK, 0), headline(run)
    flagged = ", ".join(
        f"{count:,} {in_words(status)}" for status, count in counts.items() if status is not Status.OK
    )
    quality = () if found is None else _quality_tiles(*found)
    return (
        Tile(f"{run.status.galaxies_done:,}", "galaxies fitted", f"of {run.plan.n_galaxies:,} planned"),
        Tile(percent(passed, run.n_galaxies), "passed all checks", flagged or "none flagged"),
        *quality,
        Tile(number(run.status.galaxies_per_second), "galaxies per second", _time(run)),
    )


def _time(run: RunData) -> str:
    return f"{duration(run.status.seconds_worked)} of wall time"


def _quality_tiles(sample: str, found: PointMetrics) -> tuple[Tile, ...]:
    bias, width, outliers = found.bias, found.sigma_mad, found.outliers
    return (
        Tile(
            f"{bias.value:+.4f}", "bias of Δz", f"± {bias.error:.4f}, {found.n:,} known redshifts, {sample}"
        ),
        Tile(f"{width.value:.4f}", f"{SIGMA}_MAD", f"± {width.error:.4f}"),
        Tile(f"{100 * outliers.value:.2f} %", "outliers, |Δz| > 0.15", f"± {100 * outliers.error:.2f} %"),
    )


def _subtitle(run: RunData) -> str:
    model, sampler = run.config.get("model", {}), run.config.get("sampler", {})
    bundle = Path(str(model.get("bundle", "?"))).name
    survey = Path(str(run.config.get("survey", "?"))).stem
    return (
        f"Survey {survey}, model {bundle} with the {model.get('prior', '?')} prior, sampler "
        f"{sampler.get('name', '?')}, {run.config.get('output', {}).get('draws', '?')} draws per galaxy"
    )


def _warnings(run: RunData) -> tuple[str, ...]:
    found, status = [], run.status
    if status.left:
        found.append(
            f"This run is not finished: {plural(status.left, 'block')} left. The page shows what is done."
        )
    if status.failed:
        found.append(f"{plural(status.failed, 'block')} failed for good; see Throughput and size.")
    if run.n_galaxies < status.galaxies_done:
        found.append(
            f"Figures and tables show an even sample of {run.n_galaxies:,} galaxies, whole blocks at a time."
        )
    return tuple(found)
