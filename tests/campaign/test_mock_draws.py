import numpy as np
import pytest

from popcosmos_hpc.campaign.mock_draws import detection_rate, draw_galaxies
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.photometry import BandState
from tests import toy

LIMIT = 20.0  # ten nanomaggies
CONDITIONS = [Condition("r", brighter_than=LIMIT), Condition("i", min_snr=30.0)]
N = 5000


def mock_model(conditions=CONDITIONS, groups=((("y",), 0.2),)):
    uncertainty = ConstantUncertainty(toy.BANDS, toy.ERRORS)
    return MockModel(
        toy.toy_model(), uncertainty, Selection(toy.BANDS, conditions), Coverage(toy.BANDS, groups)
    )


@pytest.fixture(scope="module")
def model():
    return mock_model()


@pytest.fixture(scope="module")
def drawn(model):
    return draw_galaxies(model, 7, np.arange(N))


def test_a_galaxy_depends_on_seed_and_index_alone(model, drawn):
    random = np.random.default_rng(0)
    shuffled = random.permutation(N)
    in_order = draw_galaxies(model, 7, shuffled)
    for ours, theirs in zip(drawn, in_order, strict=True):
        assert ours[shuffled].tobytes() == theirs.tobytes()
    for rows in (np.arange(3, 4), np.arange(100, 1000), np.array([N - 1, 5, 5])):
        few = draw_galaxies(model, 7, rows)
        for ours, theirs in zip(drawn, few, strict=True):
            assert ours[rows].tobytes() == theirs.tobytes()
    assert not np.any(draw_galaxies(model, 8, np.arange(100)).theta == drawn.theta[:100])


def test_selection_is_honoured_on_noisy_data(drawn):
    r, i = toy.BANDS.index("r"), toy.BANDS.index("i")
    limit = 10 ** (0.4 * (22.5 - LIMIT))
    assert np.all(drawn.flux[:, r] > limit) and np.all(drawn.flux[:, i] >= 30 * drawn.flux_err[:, i])
    assert np.any(drawn.true_flux[:, r] < limit), "detection acts on noisy data"
    assert set(np.unique(drawn.state)) == {BandState.MISSING, BandState.OBSERVED}
    assert np.all(drawn.state[:, :-1] == BandState.OBSERVED)
    np.testing.assert_array_equal(drawn.flux_err, np.broadcast_to(np.float32(toy.ERRORS), drawn.flux.shape))


def test_draws_follow_the_population_given_detection(drawn):
    """Against plain rejection in NumPy, which shares no code with what is tested."""
    weights, random, n = toy.arrays(), np.random.default_rng(3), 200_000
    theta = weights["mean"] + random.normal(size=(n, toy.SPACE.size)) @ weights["cholesky"].T
    true = toy.ZERO_POINTS * (theta @ weights["matrix"].T + weights["offset"])
    flux = true + toy.ERRORS * random.normal(size=true.shape)
    r, i = toy.BANDS.index("r"), toy.BANDS.index("i")
    seen = (flux[:, r] > 10 ** (0.4 * (22.5 - LIMIT))) & (flux[:, i] >= 30 * toy.ERRORS[i])
    share = seen.mean()
    assert 0.005 < share < 0.5
    expected = np.concatenate([theta[seen], flux[seen]], axis=1)
    ours = np.concatenate([drawn.theta, drawn.flux], axis=1)
    # 4.5 standard errors of the difference of means, and of variances for about normal columns.
    error = expected.std(axis=0) * np.sqrt(1 / len(ours) + 1 / len(expected))
    assert np.all(np.abs(ours.mean(axis=0) - expected.mean(axis=0)) < 4.5 * error)
    scatter = np.log(ours.std(axis=0) / expected.std(axis=0))
    assert np.all(np.abs(scatter) < 6 * np.sqrt(0.5 / len(ours) + 0.5 / len(expected)))
    # Candidates per galaxy are geometric: their mean has the relative error sqrt((1 - share) / n).
    assert drawn.n_candidates.min() == 1
    relative = drawn.n_candidates.mean() * share - 1
    assert abs(relative) < 4.5 * np.sqrt((1 - share) / N + (1 - share) / seen.sum())


def test_no_selection_keeps_every_galaxy():
    everything = draw_galaxies(mock_model([], ()), 1, np.arange(50))
    assert np.all(everything.n_candidates == 1)


def test_the_pilot_finds_the_rate_or_gives_up(model, drawn):
    # At least a hundred are found, so that the relative error is a tenth at most.
    assert abs(detection_rate(model, 7, 2**20) * drawn.n_candidates.mean() - 1) < 0.45
    with pytest.raises(ConfigurationError, match="among 24576 draws"):
        detection_rate(mock_model([Condition("r", 5.0)]), 7, 20_000)


def test_a_search_without_end_is_ended():
    with pytest.raises(ConfigurationError, match="among 50000 draws"):
        draw_galaxies(mock_model([Condition("r", 5.0)]), 7, np.arange(2), 50_000)
