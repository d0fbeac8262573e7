"""Score matching on a known distribution, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from popcosmos_hpc.errors import BundleError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, load_population
from popcosmos_hpc.model.diffusion_audit import converged_log_prob
from popcosmos_hpc.parameters import Parameter, ParameterSpace
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.prior import (
    PriorRecipe,
    draw,
    noised_draws,
    read_draws,
    train_prior,
    train_prior_bundle,
)
from popcosmos_hpc.training.two_sample import classifier_accuracy, compare_draws

SPACE = ParameterSpace(
    (
        Parameter("a", "", "free", "identity"),
        Parameter("b", "", "free", "identity"),
        Parameter("c", "", "bounded", "probit", 0.0, 2.0),
    )
)
# Normal scores do two humps no good: the empty middle is stretched.
RECIPE = PriorRecipe(
    name="toy",
    width=64,
    depth=2,
    n_rounds=12,
    batch_size=256,
    average=0.99,
    seed=3,
    margins=False,
    clock="time",
)


def known_draws(count: int, seed: int) -> np.ndarray:
    """Two humps in a, a parabola in b, and a bounded c that follows a."""
    rng = np.random.default_rng(seed)
    a = rng.choice([-2.0, 2.0], count, p=[0.3, 0.7]) + 0.5 * rng.standard_normal(count)
    b = 0.3 * a**2 + 0.4 * rng.standard_normal(count)
    c = 2.0 * stats.norm.cdf(0.5 * a + 0.3 * rng.standard_normal(count))
    return np.stack([a, b, c], axis=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("population") / "toy"
    return train_prior_bundle(known_draws(40_000, 1), SPACE, RECIPE, out)


def test_the_trained_prior_draws_what_it_was_shown(bundle):
    accuracy = load_bundle(bundle).manifest["accuracy"]
    assert accuracy["width_68"]["value"] < 0.05
    assert accuracy["mean_shift"]["value"] < 0.05
    assert accuracy["correlation"]["value"] < 0.03
    assert accuracy["classifier_accuracy"] < 0.54  # 0.5 +- 0.005 between two sets of the truth
    drawn = draw(load_population(bundle), 20_000, 9)
    share = np.mean(drawn[:, 0] > 0)
    assert abs(share - 0.7) < 0.02  # four standard errors are 0.013; the rest is the model's


def test_its_density_is_that_of_an_adaptive_solver(bundle):
    """The network is oscillating and imperfect, unlike a known score: the numbers that users meet."""
    prior = load_population(bundle)
    x = np.random.default_rng(4).normal(0, 0.8, (64, 3)).astype(np.float32)
    single = np.asarray(jax.jit(jax.vmap(lambda y: prior.diffusion.log_prob(y)))(jnp.asarray(x)))
    with jax.enable_x64(True):
        double = jax.tree.map(
            lambda v: jnp.asarray(np.asarray(v), jnp.float64) if eqx.is_inexact_array(v) else v,
            prior.diffusion,
        )
        wide = jnp.asarray(x.astype(np.float64))
        fixed = np.asarray(jax.vmap(lambda y: double.log_prob(y))(wide))
        exact = np.asarray(jax.vmap(lambda y: converged_log_prob(double, y))(wide))
    assert np.sqrt(np.mean((single - exact) ** 2)) < 0.01
    assert np.sqrt(np.mean((fixed - exact) ** 2)) < 0.005


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    draws, state = known_draws(3000, 2), tmp_path / "state.eqx"
    short = RECIPE.model_copy(update={"n_rounds": 3, "width": 16, "depth": 1})
    whole = train_prior(draws, SPACE, short)
    monkeypatch.setattr("popcosmos_hpc.training.fit.SAVE_EVERY", 0.0)

    class Stop(Exception):
        pass

    def stopping(*arguments):
        examples = noised_draws(*arguments)

        def source(index):
            if index == 2:
                raise Stop
            return examples(index)

        return source

    with monkeypatch.context() as patch:
        patch.setattr("popcosmos_hpc.training.prior.noised_draws", stopping)
        with pytest.raises(Stop):
            train_prior(draws, SPACE, short, state)
    resumed = train_prior(draws, SPACE, short, state)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.__setitem__((5, 1), np.nan), "b in 1 rows"),
        (lambda d: d.__setitem__((slice(0, 3), 2), 2.5), "c in 3 rows"),
        (lambda d: d.__setitem__((0, 0), np.inf), "a in 1 rows"),
    ],
)
def test_bad_draws_are_refused(spoil, message):
    draws = known_draws(500, 3)
    spoil(draws)
    with pytest.raises(TrainingError, match=message):
        train_prior(draws, SPACE, RECIPE)


def test_too_few_draws_and_missing_columns_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="at least 60 draws"):
        train_prior(known_draws(40, 3), SPACE, RECIPE)
    pq.write_table(pa.table({"a": [1.0], "b": [2.0]}), tmp_path / "draws.parquet")
    with pytest.raises(TrainingError, match="none for c"):
        read_draws(tmp_path / "draws.parquet", SPACE)


def test_a_diverging_training_keeps_its_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr("popcosmos_hpc.training.fit.SAVE_EVERY", 0.0)
    state = tmp_path / "state.eqx"
    model = {"w": jnp.ones(1)}

    def source(index):
        x = np.full((8, 1), 1.0 if index < 2 else np.nan, np.float32)
        return x, x

    with pytest.raises(TrainingError, match=r"round 3.*state.eqx"):
        train(model, lambda m, x, y: jnp.sum((m["w"] * x - y) ** 2), source, Schedule(4, 4), state)
    assert state.exists()


def test_a_population_of_other_parameters_is_refused(bundle):
    with pytest.raises(BundleError, match="one over a, b, c"):
        load_bundle("kids9").prior(str(bundle))
    with pytest.raises(BundleError, match="kind population"):
        load_population("kids9")


def test_two_sample_measures_see_a_difference():
    rng = np.random.default_rng(5)
    truth, same, wide = (rng.normal(0, s, (8000, 2)) for s in (1.0, 1.0, 1.1))
    names = ("x", "y")
    # The error of a half-width is about 1.3 / sqrt(8000) = 0.015 for each set.
    assert compare_draws(same, truth, names)["width_68"]["value"] < 0.06
    assert compare_draws(wide, truth, names)["width_68"]["value"] > 0.05
    assert classifier_accuracy(wide * 2, truth) > 0.6
