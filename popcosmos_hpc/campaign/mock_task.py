"""Part of a mock catalog: the model built once per process, and files of rows written whole."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.campaign.fingerprint import code_version, digest_of
from popcosmos_hpc.campaign.mock_config import MockConfig
from popcosmos_hpc.campaign.worker import build_model, prior_hash, set_up_device
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.footprint import Cells
from popcosmos_hpc.survey.hats_writer import write_sorted_rows
from popcosmos_hpc.survey.mock_rows import MockRows, mock_table

CHUNK_ROWS = 65_536
"""Galaxies in memory at a time; also the rows of a row group."""
_CANDIDATES = "popcosmos_candidates"


class Portion(NamedTuple):
    """One partition of a mock catalog.

    Attributes:
        partition: where, and how many galaxies.
        file: its Parquet file, relative to the catalog.
        first: number of its first galaxy.
        cells: its cells that hold galaxies.
        counts: (cell,) int64 galaxies in each.
    """

    partition: Partition
    file: str
    first: int
    cells: Cells
    counts: np.ndarray


class Survey(NamedTuple):
    """What a process needs to draw galaxies: settings, model, and units of the truth by name."""

    config: MockConfig
    model: Any
    truth: dict[str, str]


def inspect_survey(settings: str) -> tuple[float, dict[str, Any]]:
    """Detected share of the population, from a pilot; and what the galaxies depend on.

    Raises:
        ConfigurationError: a setting does not fit the bundle, or no galaxy passes the selection.
    """
    survey = build_survey(settings)
    from popcosmos_hpc.campaign.mock_draws import detection_rate
    from popcosmos_hpc.model.bundle import load_bundle

    config, errors = survey.config, survey.config.uncertainty.bundle
    rate = detection_rate(survey.model, config.seed, config.most_draws)
    return rate, {
        "settings": digest_of(config.science()),
        "bundle": load_bundle(config.model.bundle).sha256,
        "prior": prior_hash(config.model),
        "uncertainty": load_bundle(errors, "uncertainty").sha256 if errors is not None else None,
        "code": code_version(),
    }


@lru_cache(maxsize=2)
def build_survey(settings: str) -> Survey:
    """Model of a mock survey, built once per process.

    Args:
        settings: a `MockConfig` as JSON.

    Raises:
        ConfigurationError: a setting names other bands than the bundle has, or not all of them.
        BundleError: a bundle is missing or damaged.
    """
    set_up_device()
    from popcosmos_hpc.model.bundle import load_bundle
    from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection

    config = MockConfig.model_validate_json(settings)
    bundle = load_bundle(config.model.bundle)
    bands = config.model.bands or bundle.bands
    galaxy = build_model(config.model, bundle, bands)
    model = MockModel(
        galaxy,
        _uncertainty(config, bands),
        Selection(bands, [Condition(**item.model_dump()) for item in config.selection]),
        Coverage(bands, [(item.bands, item.missing_fraction) for item in config.coverage]),
    )
    truth = {parameter.name: parameter.unit for parameter in galaxy.space.parameters}
    truth |= dict(zip(galaxy.emulator.derived_names, galaxy.emulator.derived_units, strict=True))
    return Survey(config, model, truth)


def _uncertainty(config: MockConfig, bands: tuple[str, ...]) -> Any:
    from popcosmos_hpc.model.bundle import load_uncertainty
    from popcosmos_hpc.model.noise import ConstantUncertainty

    if config.uncertainty.bundle is not None:
        return load_uncertainty(config.uncertainty.bundle).select(bands)
    return ConstantUncertainty(bands, config.uncertainty.flux_errors(bands))


def write_portions(
    settings: str, catalog: str, portions: tuple[Portion, ...], most_draws: int
) -> tuple[int, int]:
    """Write partitions that are not there yet; returns their galaxies and the candidates drawn for them.

    Args:
        settings: a `MockConfig` as JSON.
        catalog: folder of the files.
        portions: one, or several with at most `CHUNK_ROWS` galaxies together.
        most_draws: candidates that one galaxy may try.

    Raises:
        ConfigurationError: a galaxy was not detected within `most_draws`.
    """
    survey, folder = build_survey(settings), Path(catalog)
    missing = [portion for portion in portions if not (folder / portion.file).is_file()]
    for portion, drawn in zip(missing, _draws(survey, missing, most_draws), strict=True):
        facts: dict[str, str] = {}
        write_sorted_rows(folder / portion.file, _tables(survey, portion, drawn, facts), facts)
    tried = [int(pq.read_metadata(folder / p.file).metadata[_CANDIDATES.encode()]) for p in portions]
    return sum(portion.partition.n_galaxies for portion in portions), sum(tried)


def _draws(survey: Survey, portions: list[Portion], most_draws: int) -> list[Iterable[Any]]:
    """Detected galaxies of each portion, piece by piece."""
    from popcosmos_hpc.campaign.mock_draws import DetectedGalaxies, draw_galaxies

    numbers = [portion.first + np.arange(portion.partition.n_galaxies) for portion in portions]
    seed = survey.config.seed
    if len(portions) < 2:
        pieces = (np.split(index, range(CHUNK_ROWS, len(index), CHUNK_ROWS)) for index in numbers)
        return [(draw_galaxies(survey.model, seed, index, most_draws) for index in piece) for piece in pieces]
    together = draw_galaxies(survey.model, seed, np.concatenate(numbers), most_draws)
    ends = np.cumsum([len(index) for index in numbers])[:-1]
    parts = zip(*(np.split(values, ends) for values in together), strict=True)
    return [[DetectedGalaxies(*part)] for part in parts]


def _tables(
    survey: Survey, portion: Portion, drawn: Iterable[Any], facts: dict[str, str]
) -> Iterator[pa.Table]:
    """Rows of a portion; afterwards `facts` holds the number of candidates."""
    footprint, seed = survey.config.sky.footprint(), survey.config.seed
    position = footprint.positions(portion.cells, portion.counts, seed)
    start = n_candidates = 0
    for piece in drawn:
        stop = start + len(piece.theta)
        n_candidates += int(piece.n_candidates.sum())
        index, truth = portion.first + np.arange(start, stop), np.concatenate([piece.theta, piece.derived], 1)
        photometry = (piece.flux, piece.flux_err, piece.state, piece.true_flux)
        rows = MockRows(index, position[start:stop], *photometry, truth)
        yield mock_table(rows, survey.model.galaxy.bands, survey.truth)
        start = stop
    facts[_CANDIDATES] = str(n_candidates)
