"""A population from photometry in a linear world, where parameters follow from fluxes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import TrainingError
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.emulator import LinearEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.model.prior import GaussianPrior
from popcosmos_hpc.parameters import Parameter, ParameterSpace
from popcosmos_hpc.training.distances import random_directions, sinkhorn_distance, sliced_distance
from popcosmos_hpc.training.population import (
    Features,
    Forward,
    PopulationSchedule,
    Selection,
    base_draws,
    mock_photometry,
    train_population,
)

SPACE = ParameterSpace((Parameter("a", "", "", "identity"), Parameter("b", "", "", "identity")))
BANDS = ("g", "r", "i")
MATRIX = np.array([[6.0, 2.0], [5.0, -3.0], [7.0, 0.5]])
OFFSET = np.array([30.0, 40.0, 50.0])
ERROR = np.array([0.5, 0.4, 0.6])
SCHEDULE = PopulationSchedule(
    n_mock=512, n_data=512, n_directions=16, steps_per_round=10, n_rounds=25, learning_rate=3e-3, seed=5
)


def world(selection: dict | None = None, zero_points=(1.0, 1.0, 1.0)) -> Forward:
    network = initial_score_network(jax.random.PRNGKey(0), 2, width=32, depth=2)
    prior = DiffusionPrior(Diffusion(network, NoiseSchedule(), n_steps=8), jnp.zeros(2), jnp.eye(2), SPACE)
    emulator = LinearEmulator(MATRIX, OFFSET, BANDS)
    galaxy = GalaxyModel(emulator, Likelihood(np.array(zero_points), 0.0, "gaussian"), prior)
    return Forward(
        galaxy, ConstantUncertainty(BANDS, ERROR), jnp.zeros(3), jnp.zeros(0),
        Selection.from_magnitudes(selection or {}, BANDS),
    )  # fmt: skip


def truth(count: int, seed: int) -> np.ndarray:
    """Two humps in a, and b that follows a: neither the start's mean nor its shape."""
    rng = np.random.default_rng(seed)
    a = rng.choice([-0.5, 1.5], count) + 0.4 * rng.standard_normal(count)
    return np.stack([a, 0.8 - 0.5 * a + 0.5 * rng.standard_normal(count)], axis=1)


def observed(theta: np.ndarray, seed: int, zero_points=1.0) -> np.ndarray:
    flux = zero_points * (theta @ MATRIX.T + OFFSET)
    return flux + ERROR * np.random.default_rng(seed).standard_normal(flux.shape)


def errors(flux: np.ndarray) -> np.ndarray:
    return np.broadcast_to(ERROR, flux.shape)


def drawn(forward: Forward, count: int = 8000) -> np.ndarray:
    keys = jax.random.split(jax.random.PRNGKey(99), count)
    return np.asarray(
        jax.jit(jax.vmap(lambda k: forward.galaxy.theta(forward.galaxy.prior.sample_base(k))))(keys)
    )


@pytest.mark.parametrize("distance", ["sliced", "sinkhorn"])
def test_closure_from_photometry_alone(distance):
    flux = observed(truth(5000, 1), 2)
    schedule = SCHEDULE.model_copy(update={"distance": distance})
    if distance == "sinkhorn":
        schedule = schedule.model_copy(update={"n_mock": 256, "n_data": 256, "n_rounds": 20})
    trained, found = train_population(world(), flux, errors(flux), schedule)
    expected, got = truth(8000, 3), drawn(trained)
    # 5,000 galaxies give means to 0.014 and widths to 0.01 of a width; the rest is the training's.
    assert np.all(np.abs(got.mean(0) - expected.mean(0)) < 0.1 * expected.std(0))
    assert np.all(np.abs(got.std(0) / expected.std(0) - 1) < 0.1)
    assert np.mean((got[:, 0] > 0.2) & (got[:, 0] < 0.8)) < 0.25  # 0.38 for one hump of this width
    assert found["end"] < 0.2 * found["start"]


def test_a_start_with_margins_keeps_them():
    margins = fit_marginals(truth(20_000, 7) + 0.7)
    start = eqx.tree_at(
        lambda f: (f.galaxy.prior.margins, f.galaxy.prior.diffusion.schedule),
        world(),
        (margins, NoiseSchedule("vp", clock="angle")),
        is_leaf=lambda leaf: leaf is None or isinstance(leaf, NoiseSchedule),
    )
    flux = observed(truth(5000, 1), 2)
    schedule = SCHEDULE.model_copy(update={"n_rounds": 8})
    trained, found = train_population(start, flux, errors(flux), schedule)
    assert found["end"] < 0.5 * found["start"]
    for one, other in zip(
        jax.tree.leaves(trained.galaxy.prior.margins), jax.tree.leaves(margins), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_what_is_selected_agrees_when_the_data_are_cut():
    """Beyond the cut nothing is known but what noise scatters across it, so only the selected are judged."""
    limit = 22.5 - 2.5 * np.log10(40.0)
    theta = truth(9000, 4)
    flux = observed(theta, 5)
    seen = flux[:, 1] > 40.0
    assert 0.3 < seen.mean() < 0.7
    trained, _ = train_population(world({"r": limit}), flux[seen], errors(flux[seen]), SCHEDULE)
    got = drawn(trained)
    passes = observed(got, 6)[:, 1] > 40.0
    assert np.all(np.abs(got[passes].mean(0) - theta[seen].mean(0)) < 0.1 * theta[seen].std(0))
    assert np.all(np.abs(got[passes].std(0) / theta[seen].std(0) - 1) < 0.1)


def test_selection_is_hard_with_a_soft_gradient():
    selection = Selection.from_magnitudes({"r": 22.5, "g": 21.5}, BANDS)  # 1 and 2.5 nanomaggies
    weights = [
        float(selection.weight(jnp.asarray(f))) for f in ([3.0, 1.1, 0.0], [3.0, 0.9, 9.0], [2.4, 2, 2])
    ]
    assert weights == [1.0, 0.0, 0.0]
    slope = jax.grad(selection.weight)(jnp.asarray([3.0, 1.0, 5.0]))
    assert slope[1] > 0 and slope[2] == 0
    np.testing.assert_array_equal(selection.passes(np.array([[3, 1.1, 0], [3, 0.9, 9]])), [True, False])


def test_zero_points_are_found_with_the_population():
    """The population is shown as it is, all bands but one right: what does not fit is the calibration."""
    rng = np.random.default_rng(7)
    theta = rng.standard_normal((6000, 2))
    flux = observed(theta, 8, zero_points=np.array([1.0, 1.08, 1.0]))
    schedule = SCHEDULE.model_copy(
        update={"train_zero_points": True, "zero_point_width": 0.1, "n_rounds": 40}
    )
    trained, _ = train_population(world(), flux, errors(flux), schedule)
    found = np.exp(np.asarray(trained.log_zero_points))
    # Three bands and a free two-dimensional population leave one combination of zero points; a change
    # of the population can mimic the two others.
    normal = np.cross(MATRIX[:, 0], MATRIX[:, 1])
    wrong = normal @ (np.array([1.0, 1.08, 1.0]) * OFFSET) - normal @ (found * OFFSET)
    assert abs(wrong) < 0.3 * abs(normal @ (np.array([0.0, 0.08, 0.0]) * OFFSET))


def test_base_draws_are_normal_and_even():
    """Their means scatter less than 1 / sqrt(n) of independent draws, and seeds differ."""
    draws = np.asarray(base_draws(3, 1024, 5))
    assert np.all(np.abs(draws.mean(0)) < 0.3 / np.sqrt(1024))
    np.testing.assert_allclose(draws.std(0), 1.0, atol=0.02)
    assert np.max(np.abs(np.corrcoef(draws.T) - np.eye(5))) < 0.1
    assert not np.allclose(draws, base_draws(4, 1024, 5))


def test_no_redshift_and_no_truth_goes_in():
    """The signature takes fluxes and errors only; the mock is reproducible from its seed."""
    forward = world()
    one = mock_photometry(forward, 3, 64)
    other = mock_photometry(forward, 3, 64)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], np.ones(64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, e: (np.where(np.arange(3) == 1, np.nan, f), e), "finite fluxes"),
        (lambda f, e: (f, np.zeros_like(e)), "positive errors"),
        (lambda f, e: (f[:, :2], e[:, :2]), "errors of 3 bands"),
        (lambda f, e: (f[:100], e[:100]), "at least 500"),
    ],
)
def test_bad_photometry_is_refused(change, message):
    flux = observed(truth(800, 1), 2)
    with pytest.raises(TrainingError, match=message):
        train_population(world(), *change(flux, errors(flux)), SCHEDULE)


def test_selections_that_do_not_fit_are_refused():
    flux = observed(truth(800, 1), 2)
    with pytest.raises(TrainingError, match="that do not"):
        train_population(world({"r": 18.5}), flux, errors(flux), SCHEDULE)
    bright = flux + 1000.0
    with pytest.raises(TrainingError, match="pass the selection"):
        train_population(world({"r": 15.2}), bright, errors(bright), SCHEDULE)
    with pytest.raises(TrainingError, match="bands g, r, i"):
        Selection.from_magnitudes({"K": 20.0}, BANDS)
    other = eqx.tree_at(lambda f: f.galaxy.prior, world(), GaussianPrior(SPACE, np.zeros(2), np.eye(2)))
    with pytest.raises(TrainingError, match="a diffusion prior"):
        train_population(other, flux, errors(flux), SCHEDULE)


def test_distances_of_shifted_normals():
    """Squared Wasserstein-2 of a shift d is d^2; sliced, d^2 over the number of features."""
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.standard_normal((3000, 2)), jnp.float32) for _ in range(2))
    moved = x + jnp.asarray([[1.0, 0.0]])
    ones = jnp.ones(3000)
    directions = random_directions(jax.random.PRNGKey(0), 200, 2)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-5)
    assert float(sliced_distance(moved, ones, y, directions)) == pytest.approx(0.5, abs=0.05)
    assert float(sliced_distance(x, ones, y, directions)) < 0.005
    assert float(sinkhorn_distance(moved[:500], ones[:500], y[:500], 0.05)) == pytest.approx(1.0, abs=0.2)


def test_weights_count_as_galaxies():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((4000, 1)), jnp.float32)
    weight = jnp.where(x[:, 0] > 0, 1.0, 0.0)
    half = jnp.abs(jnp.asarray(rng.standard_normal((4000, 1)), jnp.float32))
    axis = jnp.ones((1, 1))
    assert float(sliced_distance(x, weight, half, axis)) < 0.01
    assert float(sliced_distance(x, jnp.ones(4000), half, axis)) > 0.3


def test_features_do_not_let_one_outlier_rule():
    flux = observed(truth(2000, 1), 2)
    features = Features.of(flux, errors(flux))
    ordinary = np.asarray(features(jnp.asarray(flux, jnp.float32)))
    assert np.all(np.abs(np.percentile(ordinary, 84, axis=0) - np.percentile(ordinary, 16, axis=0) - 2) < 0.1)
    far = np.asarray(features(jnp.asarray([[1e6, -50.0, 0.0]], jnp.float32)))
    assert np.all(np.isfinite(far)) and np.max(np.abs(far)) < 40
