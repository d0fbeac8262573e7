"""The conditional density of a teacher whose own is known, its measures, and the verb that trains it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats

from popcosmos_hpc.cli import main
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.student_bundle import load_amplitude
from popcosmos_hpc.parameters import Parameter, ParameterSpace
from popcosmos_hpc.training.amplitude import (
    exact_conditional,
    measure_amplitude,
    negative_log_prob,
    standardised,
    train_amplitude,
    untrained,
)
from popcosmos_hpc.training.fit import train
from popcosmos_hpc.training.student_recipe import AmplitudeRecipe
from tests.model.test_diffusion import mixture

PLANE = ParameterSpace(tuple(Parameter(name, "", "free", "identity") for name in ("N", "b")))
SHIFT, MIXING = np.array([20.0, -1.0]), np.array([[2.0, 0.0], [0.5, 0.8]])
RECIPE = AmplitudeRecipe(
    name="amplitude", n_components=4, width=32, depth=2, n_rounds=6, n_draws=20_000, n_passes=2,
    batch_size=256, learning_rate=5e-3, average=0.99, n_test=64, n_pit=10_000,
)  # fmt: skip


def two_humps() -> DiffusionPrior:
    """A teacher whose conditional density is that of two normals with known weights."""
    return DiffusionPrior(
        mixture("vp", n_steps=20), jnp.asarray(SHIFT, jnp.float32), jnp.asarray(MIXING, jnp.float32), PLANE
    )


def exact(phi: np.ndarray) -> np.ndarray:
    """Ln density of `two_humps`, at t = 0."""
    covariance = 0.25 * MIXING @ MIXING.T
    humps = [SHIFT + MIXING @ np.array(mean) for mean in ([0.8, -0.5], [-0.8, 0.5])]
    return np.log(sum(0.5 * stats.multivariate_normal.pdf(phi, hump, covariance) for hump in humps))


@pytest.fixture(scope="module")
def student():
    return train_amplitude(two_humps(), RECIPE)


def test_the_teachers_conditional_is_found_along_a_line():
    phi = np.array([[0.0, -1.2], [99.0, 0.3]], np.float32)  # its own value plays no part
    lines = exact_conditional(two_humps(), phi, 0, (10.0, 30.0))
    np.testing.assert_allclose(lines.integral(np.exp(lines.log_density)), 1.0, atol=1e-6)
    for line, density, row in zip(lines.value, lines.log_density, phi, strict=True):
        fine = np.linspace(5, 35, 3001)
        joint = lambda value, row=row: np.exp(exact(np.stack([value, np.full_like(value, row[1])], axis=1)))  # noqa: E731
        wanted = joint(line) / np.trapezoid(joint(fine), fine)
        # The flow's fixed steps and its end at t_min are worth a percent of the density.
        np.testing.assert_allclose(np.exp(density), wanted, atol=0.02 * wanted.max())


def test_the_student_is_close_and_its_measures_say_so(student):
    found = {m.name: m for m in measure_amplitude(student, two_humps(), RECIPE, jax.random.PRNGKey(5))}
    assert found["kl"].value < 0.01
    assert found["efficiency"].value > 0.97
    assert found["width_ratio"].value == pytest.approx(1.0, abs=0.03)
    # The largest of ten shares, each with a standard error of 0.003.
    assert found["pit_decile"].value < 4 * found["pit_decile"].error
    assert found["pit_decile"].error == pytest.approx(0.003)


def test_measures_see_a_student_that_is_too_wide_or_shifted(student):
    wide = eqx.tree_at(lambda s: s.width, student, 1.5 * student.width)
    shifted = eqx.tree_at(lambda s: s.centre, student, student.centre + 0.5)
    for wrong in (wide, shifted):
        found = {
            m.name: m.value for m in measure_amplitude(wrong, two_humps(), RECIPE, jax.random.PRNGKey(5))
        }
        assert found["kl"] > 0.05 and found["pit_decile"] > 0.02


def test_a_sharp_edge_is_learned():
    """As a magnitude limit leaves: N below an edge that the other one moves, and rising towards it."""
    rng = np.random.default_rng(3)
    b = rng.standard_normal(40_000)
    theta = np.stack([20 + b - rng.exponential(1.0, b.size), b], axis=1).astype(np.float32)
    recipe = RECIPE.model_copy(update={"n_components": 6, "n_rounds": 8})
    start = untrained(theta, PLANE, recipe)
    network = train(start.network, negative_log_prob, lambda _: standardised(start, theta), recipe.pace())
    trained = eqx.tree_at(lambda s: s.network, start, network)
    below = lambda value, at: float(trained.mixture(jnp.asarray([0.0, at])).cdf(jnp.asarray(value)))  # noqa: E731
    beyond = [1 - below(20.2 + at, at) for at in (-1.0, 0.0, 1.0)]
    within = [below(18.0 + at, at) for at in (-1.0, 0.0, 1.0)]
    assert max(beyond) < 0.01  # one normal of the same moments has 0.12 there
    np.testing.assert_allclose(within, np.exp(-2.0), atol=0.025)


def test_the_verb_trains_measures_and_writes(tmp_path):
    network = initial_score_network(jax.random.PRNGKey(1), 2, width=8, depth=1)
    prior = DiffusionPrior(
        Diffusion(network, NoiseSchedule("vp", clock="angle")), jnp.asarray(SHIFT, jnp.float32),
        jnp.asarray(MIXING, jnp.float32), PLANE,
    )  # fmt: skip
    facts, arrays = prior_to_bundle(prior)
    teacher = save_bundle(tmp_path / "teacher", {"name": "teacher", **facts}, arrays)
    recipe = tmp_path / "recipe.yaml"
    small = {"n_rounds": 3, "n_draws": 5000, "n_passes": 1, "n_test": 10, "n_pit": 2000}
    recipe.write_text(yaml.safe_dump({**RECIPE.model_dump(mode="json"), **small}))
    arguments = ["train", "student", str(teacher), "--kind", "amplitude", "--config", str(recipe)]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "made")], catch_exceptions=False)
    assert result.exit_code == 0 and "accuracy   kl " in result.output
    bundle = load_bundle(tmp_path / "made", "amplitude")
    assert bundle.manifest["teacher_sha256"] == load_bundle(teacher).sha256
    assert bundle.manifest["parameter"] == "N"
    loaded = load_amplitude(tmp_path / "made", "proposal", teacher=teacher)
    assert np.isfinite(loaded.log_prob(jnp.asarray(20.0), jnp.asarray([20.0, -1.0])))
