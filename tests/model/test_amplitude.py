"""Conditional mixtures: densities that integrate to one, draws that follow them, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.amplitude import AmplitudeConditional, Mixture, initial_mixture_network
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.student_bundle import amplitude_from_bundle, load_amplitude, student_to_bundle
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.parameters import Parameter, ParameterSpace

SPACE = ParameterSpace(
    (
        Parameter("a", "", "bounded", "probit", -1.0, 1.0),
        Parameter("N", "", "free", "identity"),
        Parameter("b", "", "free", "identity"),
    )
)
GOOD = (Measure("kl", 0.005, 0.001), Measure("pit_decile", 0.002, 0.001))


def conditional(accuracy=(), parameter="N", seed=1) -> AmplitudeConditional:
    """Random weights, large enough that the mixture varies with the other parameters."""
    rng = np.random.default_rng(seed)
    network = initial_mixture_network(jax.random.PRNGKey(seed), jnp.asarray([0.5, -0.3]), 4, 16, 2)
    last = lambda n: n.network.layers[-1].weight  # noqa: E731
    network = eqx.tree_at(last, network, 30 * last(network))
    margins = fit_marginals(np.stack([rng.uniform(-1, 1, 5000), rng.exponential(1.0, 5000)], axis=1))
    whitening = jnp.asarray([[1.0, 0.0], [0.4, 1.2]])
    shift, centre, width = jnp.asarray([0.1, -0.2]), jnp.asarray(20.0), jnp.asarray(1.5)
    return AmplitudeConditional(network, margins, shift, whitening, centre, width, SPACE, parameter, accuracy)


THETA = jnp.asarray([[0.3, 0.0, 1.2], [-0.9, 5.0, 0.1], [0.99, 40.0, 8.0]])


def test_the_density_is_that_of_the_components_and_normalised():
    student, line = conditional(), jnp.linspace(-5.0, 45.0, 20_001)
    density = jax.jit(jax.vmap(student.log_prob, (0, None)))
    for theta in THETA:
        weight, mean, sd = (np.asarray(part, np.float64) for part in student.components(theta))
        assert np.exp(weight).sum() == pytest.approx(1.0, abs=1e-5) and np.all(sd > 0)
        found = np.asarray(density(line, theta), np.float64)
        wanted = np.exp(weight) @ stats.norm.pdf(np.asarray(line), mean[:, None], sd[:, None])
        np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-3, atol=1e-6)
        assert np.trapezoid(np.exp(found), np.asarray(line)) == pytest.approx(1.0, abs=1e-3)


def test_its_own_value_plays_no_part_and_the_others_do():
    student = conditional()
    moved = [student.components(THETA[0].at[index].add(0.4)) for index in range(3)]
    own = student.components(THETA[0])
    np.testing.assert_array_equal(np.stack(moved[1]), np.stack(own))
    assert all(np.abs(np.stack(moved[index]) - np.stack(own)).max() > 0.01 for index in (0, 2))


def test_draws_follow_the_distribution_function():
    student, keys = conditional(), jax.random.split(jax.random.PRNGKey(2), 4000)
    sample = jax.jit(jax.vmap(student.sample, (0, None)))
    for theta in THETA:
        drawn = sample(keys, theta)
        quantile = np.asarray(jax.vmap(student.mixture(theta).cdf)(drawn))
        assert stats.kstest(quantile, "uniform").pvalue > 0.001
        mean, sd = student.mixture(theta).moments()
        assert abs(float(drawn.mean() - mean)) < 4 * float(sd) / np.sqrt(4000)


def test_moments_are_those_of_a_mixture():
    mixture = Mixture(jnp.log(jnp.asarray([0.25, 0.75])), jnp.asarray([0.0, 2.0]), jnp.asarray([1.0, 0.5]))
    mean, sd = mixture.moments()
    assert float(mean) == pytest.approx(1.5)
    assert float(sd) == pytest.approx(np.sqrt(0.25 * (1 + 2.25) + 0.75 * (0.25 + 0.25)))


def test_gradients_are_finite_far_outside_the_draws():
    student = conditional()
    slope = jax.jit(jax.grad(lambda theta: student.log_prob(jnp.asarray(21.0), theta)))
    for theta in ([0.0, 0.0, 200.0], [1.0, 0.0, -50.0], [-1.0, 1e6, 0.0]):
        assert np.isfinite(slope(jnp.asarray(theta))).all()


def test_bounded_and_unknown_parameters_are_refused():
    for parameter in ("a", "mass"):
        with pytest.raises(ConfigurationError, match="without bounds"):
            conditional(parameter=parameter)


def write(path, student):
    facts, arrays = student_to_bundle(student)
    return save_bundle(path, {"name": "amplitude", **facts, "teacher_sha256": "0" * 64}, arrays)


def test_a_bundle_gives_back_the_same_density(tmp_path):
    student = conditional(GOOD)
    loaded = load_amplitude(write(tmp_path / "amplitude", student), "conditional")
    assert loaded.accuracy == GOOD and loaded.uses() == ("conditional", "proposal")
    for theta in THETA:
        np.testing.assert_array_equal(np.stack(loaded.components(theta)), np.stack(student.components(theta)))


def test_inaccurate_ones_and_wrong_bundles_are_refused(tmp_path):
    rough = write(tmp_path / "rough", conditional((Measure("kl", 0.05, 0.001), GOOD[1])))
    assert load_amplitude(rough, "proposal").uses() == ("proposal",)
    with pytest.raises(BundleError, match="a measured kl of"):
        load_amplitude(rough, "conditional")
    with pytest.raises(BundleError, match="no measured kl"):
        load_amplitude(write(tmp_path / "unmeasured", conditional()), "proposal")
    with pytest.raises(BundleError, match="the student of reference"):
        load_amplitude(rough, "proposal", teacher="reference")
    bundle = load_bundle(rough)
    bundle.arrays["student.whitening"] = np.zeros((3, 3), np.float32)
    with pytest.raises(BundleError, match=r"student.whitening of shape \(2, 2\)"):
        amplitude_from_bundle(bundle)
