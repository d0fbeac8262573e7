"""Zero points of a run's survey: from its configuration and catalog to lines for its configuration."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from popcosmos_hpc.config import RunConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import Bundle, load_bundle
from popcosmos_hpc.photometry import Photometry
from popcosmos_hpc.survey import expression
from popcosmos_hpc.survey.canonical import numbers, select_rows
from popcosmos_hpc.survey.catalog import SourceCatalog
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.preset import load_preset
from popcosmos_hpc.training.calibration import Calibration, solve_zero_points

_ABOVE_ZERO = 0.02  # below it are stars and peculiar velocities
_WIDTH = 1e-3


@dataclass(frozen=True)
class CalibrationSample:
    """Which galaxies calibrate.

    Args:
        redshift_column: column of known redshifts, usually one that the preset passes through.
        where: selection over the catalog's columns, or None.
        even_ids: only galaxies of an even `object_id`, so that the odd ones can judge the result.
        max_galaxies: a random subset of so many at most.
    """

    redshift_column: str
    where: str | None = None
    even_ids: bool = True
    max_galaxies: int = 1500


def calibrate(
    config: RunConfig,
    sample: CalibrationSample,
    reference_band: str,
    n_rounds: int = 2,
    n_spectra: int = 4096,
) -> Calibration:
    """Zero points of the bands of a run, with its bundle, prior, error floors and seed.

    Zero points that the configuration holds already are not used: the result replaces them.

    Args:
        config: the run's settings; its input is the catalog.
        sample: which galaxies.
        reference_band: band whose zero point stays 1.
        n_rounds: see `solve_zero_points`.
        n_spectra: spectra per galaxy.

    Raises:
        ConfigurationError: a column or band is unknown, or too few galaxies have a redshift.
        SchemaError: the catalog cannot be read.
        BundleError: the bundle cannot be used.
    """
    bundle = load_bundle(config.model.bundle)
    catalog = SourceCatalog(config.input.path, load_preset(config.survey))
    bands = config.model.bands or tuple(band for band in bundle.bands if band in catalog.bands)
    if missing := [band for band in bands if band not in catalog.bands]:
        raise ConfigurationError(
            f"bands of the catalog: {', '.join(catalog.bands)}",
            ", ".join(missing),
            "model.bands",
            "Correct them, or the preset.",
        )
    photometry = read_sample(catalog, bundle, bands, sample, config.seed)
    return solve_zero_points(
        bundle.emulator(bands),
        bundle.prior(config.model.prior),
        photometry,
        reference_band,
        seed=config.seed,
        n_spectra=n_spectra,
        n_rounds=n_rounds,
        error_floor=_floors(config, bands),
    )


def read_sample(
    catalog: SourceCatalog, bundle: Bundle, bands: tuple[str, ...], sample: CalibrationSample, seed: int
) -> Photometry:
    """Photometry [galaxy, band] of the galaxies that calibrate, sorted by id, with known redshifts.

    Raises:
        ConfigurationError: the catalog lacks a column of the sample.
    """
    rows = [_chosen(catalog.read(*interval)[0], bundle, sample) for interval in catalog.pixel_ranges()]
    table = pa.concat_tables(rows).sort_by("object_id")
    if table.num_rows > sample.max_galaxies:
        random = np.random.default_rng(seed)
        table = table.take(np.sort(random.permutation(table.num_rows)[: sample.max_galaxies]))
    redshift = numbers(table[sample.redshift_column]).astype(np.float32)
    return Photometry(
        _by_band(table, "flux", bands).astype(np.float32),
        _by_band(table, "flux_err", bands).astype(np.float32),
        _by_band(table, "state", bands).astype(np.int8),
        redshift,
        np.full_like(redshift, _WIDTH),
    )


def _chosen(table: pa.Table, bundle: Bundle, sample: CalibrationSample) -> pa.Table:
    """Rows of the sample among canonical rows."""
    wanted = (sample.redshift_column, *expression.column_names(sample.where or "True", "--where"))
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ConfigurationError(
            f"columns of the catalog: {', '.join(table.column_names)}",
            ", ".join(missing),
            "train zero-points",
            "Let the survey's preset pass the column through, and ingest again.",
        )
    redshift = numbers(table[sample.redshift_column])
    low, high = bundle.redshift_range
    with np.errstate(invalid="ignore"):
        chosen = (redshift > max(low, _ABOVE_ZERO)) & (redshift < high) & select_rows(sample.where, table)
    if sample.even_ids:
        chosen &= table["object_id"].to_numpy() % 2 == 0
    return table.filter(pa.array(chosen))


def _by_band(table: pa.Table, kind: str, bands: tuple[str, ...]) -> np.ndarray:
    columns = [table[f"{kind}_{band}"].to_numpy() for band in bands]
    return np.stack(columns, axis=1)


def _floors(config: RunConfig, bands: tuple[str, ...]) -> np.ndarray:
    floor = config.model.likelihood.error_floor
    return np.array([floor.get(band, 0.0) if isinstance(floor, dict) else floor for band in bands])


def zero_points_yaml(found: Calibration, reference_band: str) -> str:
    """Lines to paste under `model.likelihood` of a run's configuration; the table is in comments."""
    width = max(len(band) for band in found.bands) + 1
    lines = [
        f"# Factors on the model flux; {reference_band} is 1 by convention.",
        f"zero_points:  {'':{width}}#  error  scatter  galaxies",
    ]
    for band, value, error, scatter, n in zip(
        found.bands, found.zero_points, found.zero_point_err, found.scatter, found.n_used, strict=True
    ):
        lines.append(f"  {band + ':':<{width}} {value:<10.4f} # {error:6.4f}  {scatter:7.4f}  {n:8d}")
    return "\n".join(lines) + "\n"


def write_zero_points(found: Calibration, reference_band: str, out: Path) -> Path:
    """Write `zero_points_yaml` to a file, which appears as a whole."""
    with replace_atomically(out) as partial:
        partial.write_text(zero_points_yaml(found, reference_band), encoding="utf-8")
    return out
