"""Shipped configurations agree with each other and with the toy world."""

from pathlib import Path

import numpy as np
import pytest

from popcosmos_hpc.campaign.mock_config import load_mock_config
from popcosmos_hpc.config import load_config
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.survey.preset import load_preset
from tests import toy

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("runs/*.yaml")), ids=lambda path: path.stem)
def test_runs_name_bands_of_their_survey(path):
    config = load_config(path)
    bands = load_preset(config.survey).band_names
    likelihood = config.model.likelihood
    floors = likelihood.error_floor if isinstance(likelihood.error_floor, dict) else {}
    assert set(config.model.bands or ()) | set(likelihood.zero_points) | set(floors) <= set(bands)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mocks/*.yaml")), ids=lambda path: path.stem)
def test_mocks_name_bands_of_their_bundle(path):
    config = load_mock_config(path)
    bands = config.model.bands or load_bundle(config.model.bundle).bands
    named = {item.band for item in config.selection} | {band for g in config.coverage for band in g.bands}
    assert named <= set(bands)
    assert config.uncertainty.depths is None or set(config.uncertainty.depths) == set(bands)
    assert config.sky.footprint().area > 0


def test_toy_run_is_the_toy_world():
    config = load_config("toy")
    assert load_preset(config.survey).band_names == toy.BANDS
    factors = [config.model.likelihood.zero_points.get(band, 1.0) for band in toy.BANDS]
    np.testing.assert_array_equal(factors, toy.ZERO_POINTS)
