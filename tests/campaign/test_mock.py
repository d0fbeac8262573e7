import numpy as np
import pyarrow.parquet as pq
import pytest

from popcosmos_hpc.campaign.mock import KIDS_DEPTHS, MockSurvey, write_mock
from popcosmos_hpc.errors import ConfigurationError
from tests import toy

SURVEY = MockSurvey(400, seed=2, depths={}, default_depth=21.0, magnitude_limit=20.5)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("mock") / "survey.parquet"
    return pq.read_table(write_mock(path, toy.toy_model(), SURVEY)).to_pandas()


def test_rows_columns_and_selection(table):
    assert len(table) == 402 and table["dec"].isna().sum() == 2
    assert table["object_id"].is_unique and table["object_id"].min() > 2**53 - 10
    assert {f"truth_{name}" for name in toy.SPACE.names} <= set(table.columns)
    limit = 10 ** (0.4 * (22.5 - 20.5))
    assert (table["flux_r"] > limit).all()
    unseen = table["flux_z"].isna()
    assert 0 < unseen.mean() < 0.15 and (unseen == table["flux_err_z"].isna()).all()
    assert not table["flux_r"].isna().any()


def test_noise_is_that_of_the_model(table):
    weights = toy.arrays()
    theta = table[[f"truth_{name}" for name in toy.SPACE.names]].to_numpy()
    expected = toy.ZERO_POINTS * (theta @ weights["matrix"].T + weights["offset"])
    band = toy.BANDS.index("u")
    residual = (table["flux_u"] - expected[:, band]) / table["flux_err_u"]
    assert abs(residual.mean()) < 0.2 and 0.85 < residual.std() < 1.15


def test_same_seed_same_survey(tmp_path, table):
    again = pq.read_table(write_mock(tmp_path / "a.parquet", toy.toy_model(), SURVEY)).to_pandas()
    np.testing.assert_array_equal(again["flux_g"], table["flux_g"])


def test_impossible_survey_is_refused(tmp_path, monkeypatch):
    from popcosmos_hpc.campaign import mock

    monkeypatch.setattr(mock, "_MOST_DRAWS", 10_000)
    with pytest.raises(ConfigurationError, match="among 16384 draws"):
        write_mock(tmp_path / "a.parquet", toy.toy_model(), MockSurvey(10, magnitude_limit=5.0))


def test_depths():
    errors = MockSurvey(1).flux_errors(("r", "other"))
    np.testing.assert_allclose(22.5 - 2.5 * np.log10(5 * errors), [KIDS_DEPTHS["r"], 22.0])
