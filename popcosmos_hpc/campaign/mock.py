"""The small mock survey of the demo: one table, in which some galaxies and rows are faulty on purpose."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.campaign.mock_draws import DetectedGalaxies, detection_rate, draw_galaxies
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.photometry import AB_ZERO_POINT, BandState
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.mock_rows import object_ids

# 5 sigma in 2 arcsec: Kuijken et al. 2019 (arXiv:1902.11265), Table 2 for KiDS, section 2 for VIKING.
KIDS_DEPTHS = {
    "u": 24.2,
    "g": 25.1,
    "r": 25.0,
    "i": 23.7,
    "Z": 22.7,
    "Y": 22.0,
    "J": 21.8,
    "H": 21.1,
    "Ks": 21.2,
}
_INFRARED = ("Z", "Y", "J", "H", "Ks", "z", "y")
_MOST_DRAWS = 2**22


@dataclass(frozen=True)
class MockSurvey:
    """What the mock survey sees.

    Args:
        n_galaxies: galaxies that it detects.
        seed: of all random numbers.
        depths: 5-sigma AB magnitude per band; bands not named have `default_depth`.
        default_depth: of the other bands.
        selection_band: band of the magnitude limit; the first band if it is not there.
        magnitude_limit: faintest observed magnitude.
        missing_fraction: share of galaxies outside the infrared bands' coverage.
        centre: ra and dec of the patch [deg].
        width: of the patch in both directions [deg].
    """

    n_galaxies: int
    seed: int = 1
    depths: dict[str, float] = field(default_factory=lambda: dict(KIDS_DEPTHS))
    default_depth: float = 22.0
    selection_band: str = "r"
    magnitude_limit: float = 23.0
    missing_fraction: float = 0.04
    centre: tuple[float, float] = (180.0, 0.0)
    width: float = 2.0

    def flux_errors(self, bands: tuple[str, ...]) -> np.ndarray:
        """1-sigma errors (band,) [nanomaggies]."""
        depths = np.array([self.depths.get(band, self.default_depth) for band in bands])
        return 10 ** (0.4 * (AB_ZERO_POINT - depths)) / 5


def write_mock(path: Path, model: GalaxyModel, survey: MockSurvey) -> Path:
    """Write a mock survey as a Parquet table.

    Columns: object_id, ra, dec, flux_<band> and flux_err_<band> [nanomaggies, NaN where not observed],
    truth_<parameter> and truth_<derived quantity>. Two further rows have no coordinates, so that there is
    something to refuse.

    Args:
        path: file to write; it appears as a whole.
        model: galaxies and noise; galaxies follow its prior, given that they are detected.
        survey: what is detected.

    Raises:
        ConfigurationError: the prior has no galaxy that bright among four million.
    """
    drawn, columns = _draw(model, survey), _positions(survey)
    for index, band in enumerate(model.bands):
        missing = drawn.state[:, index] == BandState.MISSING
        for name, values in (("flux", drawn.flux), ("flux_err", drawn.flux_err)):
            columns[f"{name}_{band}"] = np.where(missing, np.float32(np.nan), values[:, index])
    truth = np.concatenate([drawn.theta, drawn.derived], axis=1)
    for index, name in enumerate((*model.space.names, *model.emulator.derived_names)):
        columns[f"truth_{name}"] = truth[:, index]
    with replace_atomically(path) as partial:
        pq.write_table(_with_bad_rows(pa.table(columns)), partial)
    return path


def _draw(model: GalaxyModel, survey: MockSurvey) -> DetectedGalaxies:
    bands = model.bands
    selected = survey.selection_band if survey.selection_band in bands else bands[0]
    infrared = tuple(band for band in bands if band in _INFRARED)
    groups = [(infrared, survey.missing_fraction)] if 0 < len(infrared) < len(bands) else []
    mock = MockModel(
        model,
        ConstantUncertainty(bands, survey.flux_errors(bands)),
        Selection(bands, [Condition(selected, brighter_than=survey.magnitude_limit)]),
        Coverage(bands, groups),
    )
    detection_rate(mock, survey.seed, _MOST_DRAWS)
    return draw_galaxies(mock, survey.seed, np.arange(survey.n_galaxies))


def _positions(survey: MockSurvey) -> dict[str, np.ndarray]:
    """Identifiers, and positions uniform over a small patch."""
    random, half = np.random.default_rng([survey.seed, 1]), survey.width / 2
    offset = random.uniform(-half, half, (2, survey.n_galaxies))
    dec = survey.centre[1] + offset[1]
    return {
        "object_id": object_ids(np.arange(survey.n_galaxies)),
        "ra": survey.centre[0] + offset[0] / np.cos(np.radians(survey.centre[1])),
        "dec": dec,
    }


def _with_bad_rows(table: pa.Table) -> pa.Table:
    bad = table.slice(0, 2)
    ids = pa.array(bad["object_id"].to_numpy() - 3 * len(bad), pa.int64())
    nowhere = pa.array(np.full(len(bad), np.nan))
    bad = bad.set_column(bad.column_names.index("object_id"), "object_id", ids)
    return pa.concat_tables([table, bad.set_column(bad.column_names.index("dec"), "dec", nowhere)])
