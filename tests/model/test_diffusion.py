"""Diffusions with a known score: density, transport and inverse against exact answers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_audit import converged_log_prob, converged_transport
from popcosmos_hpc.model.diffusion_bundle import prior_from_bundle, prior_to_bundle
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.parameters import Parameter, ParameterSpace, pop_cosmos

MEANS = np.array([[0.8, -0.5], [-0.8, 0.5]])
SIGMA = 0.5
KINDS = ("vp", "sub_vp", "ve")


class MixtureScore(eqx.Module):
    """The exact score, of two equal round normals under a schedule, in the network's place."""

    schedule: NoiseSchedule
    output: str = eqx.field(static=True)

    def __call__(self, t, x, condition=None):
        alpha, sigma = self.schedule.scales(t)
        variance = (alpha * SIGMA) ** 2 + sigma**2

        def density(y):
            square = jnp.sum((y[None] - alpha * jnp.asarray(MEANS, x.dtype)) ** 2, axis=1)
            return jax.scipy.special.logsumexp(-0.5 * square / variance)

        score = jax.grad(density)(x)
        return {"score": score, "scaled_score": score * sigma, "velocity": -(score + x) * sigma / alpha}[
            self.output
        ]


def mixture(kind: str, output: str = "score", n_steps: int = 12, clock: str = "time") -> Diffusion:
    schedule = NoiseSchedule(kind, clock=clock)
    network: Any = MixtureScore(schedule, output)
    return Diffusion(network, schedule, output, n_steps)


def exact_log_prob(diffusion: Diffusion, x: np.ndarray) -> np.ndarray:
    """Of the mixture as it is at t_min, where the flow ends."""
    alpha, sigma = (float(v) for v in diffusion.schedule.scales(jnp.asarray(diffusion.schedule.t_min)))
    width = np.hypot(alpha * SIGMA, sigma)
    parts = [stats.norm.logpdf(x, alpha * mean, width).sum(axis=1) for mean in MEANS]
    return np.logaddexp(*parts) - np.log(2)


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_that_of_the_mixture(kind):
    x = np.random.default_rng(1).normal(0, 1, (64, 2)).astype(np.float32)
    diffusion = mixture(kind)
    found = jax.jit(jax.vmap(lambda y: diffusion.log_prob(y, n_steps=100)))(jnp.asarray(x))
    # The base forgets the data's variance V: exp(-10) V of it for vp, V / 100 for ve, which changes ln p by
    # V (|u|^2 - 2) / 200, with V = 0.9 and |u|^2 up to 18 here.
    limit = 0.08 if kind == "ve" else 0.02
    assert np.max(np.abs(np.asarray(found) - exact_log_prob(diffusion, x))) < limit


def test_the_angle_is_another_clock_of_the_same_flow():
    angle, time = NoiseSchedule("vp", clock="angle"), NoiseSchedule("vp")
    s = jnp.linspace(angle.s_min, angle.s_max, 50)
    t = jax.vmap(angle.time)(s)
    np.testing.assert_allclose(t[jnp.array([0, -1])], [angle.t_min, 1.0], rtol=1e-4)
    alpha, sigma = jax.vmap(angle.scales)(t)
    np.testing.assert_allclose(alpha, jnp.cos(s**2), atol=1e-5)
    np.testing.assert_allclose(sigma, jnp.sin(s**2), atol=1e-5)
    # Tangents at the end, where cos(angle) is 0.007, lose digits in float32.
    np.testing.assert_allclose(jax.vmap(angle.pace)(s), jax.vmap(jax.grad(angle.time))(s), rtol=2e-3)
    np.testing.assert_allclose(jax.vmap(time.pace)(s), jax.vmap(jax.grad(time.time))(s), rtol=1e-5)
    with jax.enable_x64(True):
        u = jnp.asarray(np.random.default_rng(5).normal(0, 1, (64, 2)), jnp.float64)
        ends = [
            jax.vmap(mixture("vp", "velocity", n, clock).transport)(u)
            for n, clock in ((160, "time"), (160, "angle"), (12, "time"), (12, "angle"))
        ]
    np.testing.assert_allclose(ends[0], ends[1], atol=3e-4)
    error = [float(jnp.sqrt(jnp.mean((end - ends[0]) ** 2))) for end in ends[2:]]
    assert error[1] < 0.7 * error[0]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_mixture(kind):
    diffusion = mixture(kind, n_steps=20)
    u = np.random.default_rng(2).normal(0, 1, (4000, 2)).astype(np.float32)
    x = np.asarray(jax.jit(jax.vmap(diffusion.transport))(jnp.asarray(u)))
    truth = np.random.default_rng(3)
    expected = truth.normal(0, SIGMA, (4000, 2)) + MEANS[truth.integers(0, 2, 4000)]
    for axis in range(2):
        assert stats.ks_2samp(x[:, axis], expected[:, axis]).pvalue > 0.001


@pytest.mark.parametrize("output", ["scaled_score", "velocity"])
def test_outputs_are_the_same_flow(output):
    x = jnp.asarray([0.3, -1.1])
    for t in (0.002, 0.1, 0.9):
        expected = mixture("vp").flow(jnp.asarray(t), x)
        np.testing.assert_allclose(
            mixture("vp", output).flow(jnp.asarray(t), x), expected, rtol=2e-3, atol=2e-4
        )


def test_inverse_undoes_a_fine_transport():
    diffusion = mixture("vp", n_steps=200)
    u = jnp.asarray(np.random.default_rng(4).normal(0, 1, (32, 2)).astype(np.float32))
    back = jax.vmap(lambda v: diffusion.inverse(diffusion.transport(v), n_steps=200))(u)
    np.testing.assert_allclose(back, u, atol=3e-3)


def test_more_steps_converge_at_third_order():
    u = jnp.asarray(np.random.default_rng(5).normal(0, 1, (64, 2)))
    with jax.enable_x64(True):
        u = jnp.asarray(np.asarray(u), jnp.float64)
        exact = jax.vmap(lambda v: mixture("vp", n_steps=640).transport(v))(u)
        error = [
            float(jnp.sqrt(jnp.mean((jax.vmap(mixture("vp", n_steps=n).transport)(u) - exact) ** 2)))
            for n in (20, 40, 80)
        ]
    assert error[0] / error[1] > 5 and error[1] / error[2] > 5  # 8 in the limit


def test_adaptive_solver_agrees_in_double_precision():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(6).normal(0, 0.8, (16, 2)), jnp.float64)
        diffusion = mixture("vp", "velocity")
        fixed = jax.vmap(lambda y: diffusion.log_prob(y, n_steps=200))(x)
        adaptive = jax.vmap(lambda y: converged_log_prob(diffusion, y))(x)
        np.testing.assert_allclose(fixed, adaptive, atol=1e-4)
        moved = jax.vmap(lambda y: converged_transport(diffusion, y))(x)
        np.testing.assert_allclose(jax.vmap(mixture("vp", "velocity", 400).transport)(x), moved, atol=1e-5)


def test_prior_density_counts_shift_and_mixing():
    space = pop_cosmos()
    network = initial_score_network(jax.random.PRNGKey(0), space.size, width=8, depth=1)
    still = eqx.tree_at(lambda n: n.weights[-1], network, jnp.zeros_like(network.weights[-1]))
    mixing = jnp.asarray(np.tril(np.random.default_rng(7).normal(0, 0.1, (16, 16))) + np.eye(16), jnp.float32)
    shift = jnp.linspace(-1, 1, 16)
    prior = DiffusionPrior(Diffusion(still, NoiseSchedule()), shift, mixing, space)
    u = prior.sample_base(jax.random.PRNGKey(1))
    phi = prior.transport(u)  # a velocity of zero moves nothing
    np.testing.assert_allclose(phi, shift + mixing @ u, atol=1e-5)
    covariance = np.asarray(mixing, np.float64) @ np.asarray(mixing, np.float64).T
    expected = stats.multivariate_normal.logpdf(np.asarray(phi), np.asarray(shift), covariance)
    assert float(prior.log_prob(phi)) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(prior.inverse(phi), u, atol=1e-4)


def skewed() -> DiffusionPrior:
    """A population with margins, of long tails on one side, whose flow moves nothing."""
    space = ParameterSpace(tuple(Parameter(name, "", "free", "identity") for name in "ab"))
    rng = np.random.default_rng(9)
    margins = fit_marginals(np.stack([rng.exponential(1.0, 50_000), rng.beta(2, 4, 50_000)], axis=1))
    still: Any = lambda t, x, condition=None: jnp.zeros_like(x)  # noqa: E731
    mixing = jnp.asarray([[1.0, 0.0], [0.6, 0.8]])
    return DiffusionPrior(Diffusion(still, NoiseSchedule()), jnp.zeros(2), mixing, space, margins)


def test_margins_take_a_normal_to_the_population():
    prior = skewed()
    u = jax.vmap(prior.sample_base)(jax.random.split(jax.random.PRNGKey(1), 20_000))
    phi = jax.jit(jax.vmap(prior.transport))(u)
    # The largest difference of distribution functions: 1.63 / sqrt(n) at 1 %, and 0.004 for the splines.
    assert stats.kstest(np.asarray(phi[:, 0]), "expon").statistic < 1.63 / np.sqrt(20_000) + 0.004
    assert (
        stats.kstest(np.asarray(phi[:, 1]), stats.beta(2, 4).cdf).statistic < 1.63 / np.sqrt(20_000) + 0.004
    )
    assert stats.spearmanr(phi[:, 0], phi[:, 1]).statistic == pytest.approx(
        6 / np.pi * np.arcsin(0.3), abs=0.02
    )


def test_the_density_counts_the_slope_of_the_margins():
    prior, u = skewed(), jnp.asarray([[0.3, -1.0], [2.0, 1.5], [-5.0, 4.0]])  # the last is beyond the knots
    transport, jacobian = (
        eqx.filter_jit(lambda v: prior.transport(v)),
        eqx.filter_jit(jax.jacfwd(lambda v: prior.transport(v))),
    )
    log_prob = eqx.filter_jit(jax.value_and_grad(lambda phi: prior.log_prob(phi)))
    for row in u:
        phi, slope = transport(row), jacobian(row)
        expected = prior.base_log_prob(row) - jnp.linalg.slogdet(slope)[1]
        density, gradient = log_prob(phi)
        assert float(density) == pytest.approx(float(expected), abs=5e-3)
        np.testing.assert_allclose(prior.inverse(phi), row, atol=5e-3)
        assert np.isfinite(gradient).all() and np.isfinite(slope).all()


def test_bundles_keep_margins_and_clock_and_old_ones_have_neither():
    network = initial_score_network(jax.random.PRNGKey(0), 2, width=8, depth=1)
    for schedule, margins in (
        (NoiseSchedule("vp", clock="angle"), skewed().margins),
        (NoiseSchedule(), None),
    ):
        prior = eqx.tree_at(lambda p: p.diffusion, skewed(), Diffusion(network, schedule))
        prior = DiffusionPrior(prior.diffusion, prior.shift, prior.mixing, prior.space, margins)
        facts, arrays = prior_to_bundle(prior)
        if margins is None:  # as bundles were written before there were clocks
            del facts["diffusion"]["schedule"]["clock"]
        back = prior_from_bundle(facts, arrays, "here")
        assert back.diffusion.schedule.clock == schedule.clock
        u = jnp.asarray([0.4, -1.3])
        np.testing.assert_array_equal(back.transport(u), prior.transport(u))
    arrays |= {"marginals.scores": np.arange(3.0), "marginals.knots": np.zeros((2, 3))}
    with pytest.raises(BundleError, match="an array marginals"):
        prior_from_bundle(facts, arrays, "here")
    arrays["marginals.slopes"] = np.ones((2, 3))
    with pytest.raises(BundleError, match="rising knots"):
        prior_from_bundle(facts, arrays, "here")


def test_a_galaxys_draw_does_not_depend_on_its_batch():
    diffusion = mixture("vp")
    u = jnp.asarray(np.random.default_rng(8).normal(0, 1, (8, 2)).astype(np.float32))
    one = jax.jit(lambda vs: jax.lax.map(diffusion.transport, vs))
    np.testing.assert_array_equal(one(u)[3:], one(u[3:]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: NoiseSchedule("cosine"), "vp"),
        (lambda: NoiseSchedule("vp", 20.0, 0.1), "low < high"),
        (lambda: mixture("ve", "velocity"), "vp schedule"),
        (lambda: NoiseSchedule("ve", clock="angle"), "angle with vp"),
        (lambda: mixture("vp", n_steps=2), "3 steps"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        wrong()
