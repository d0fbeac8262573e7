import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import Planck18
from scipy import stats

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.mass_function import MASS_RANGE, log_mass_function
from popcosmos_hpc.model.prior import LOWEST, AnalyticPrior, GaussianPrior
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.parameters import POP_COSMOS, Parameter, ParameterSpace, pop_cosmos

N_DRAWS = 20_000
NAMES = POP_COSMOS.names


@pytest.fixture(scope="module")
def prior():
    return AnalyticPrior(POP_COSMOS)


@pytest.fixture(scope="module")
def draws(prior):
    """Direct draws as theta, wide draws as theta with their weights, and direct draws as phi."""
    keys = jax.random.split(jax.random.PRNGKey(3), N_DRAWS)
    direct = jax.jit(jax.vmap(prior.sample_base))(keys)
    wide, log_weight = jax.jit(jax.vmap(prior.propose_base))(jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
    latent = jax.jit(jax.vmap(prior.transport))
    physical = lambda u: np.asarray(to_physical(prior.space, latent(u)), np.float64)  # noqa: E731
    return physical(direct), physical(wide), np.exp(np.asarray(log_weight, np.float64)), latent(direct)


def column(theta, name):
    return theta[:, NAMES.index(name)]


def log10_mass(theta):
    return -0.4 * (column(theta, "N") - Planck18.distmod(column(theta, "redshift")).value)


def test_distance_modulus_is_planck18(prior):
    redshift = np.geomspace(1e-3, 6.0, 60).astype(np.float32)
    ours = jax.vmap(prior.mass_redshift.distance_modulus)(jnp.asarray(redshift))
    np.testing.assert_allclose(ours, Planck18.distmod(redshift.astype(float)).value, atol=3e-5)


def test_joint_density_of_redshift_and_mass_integrates_to_one(prior):
    redshift, mass = np.linspace(1e-3, 6.0, 600), np.linspace(*MASS_RANGE, 601)
    density = jax.vmap(jax.vmap(prior.mass_redshift.log_prob, (None, 0)), (0, None))
    values = np.exp(np.asarray(density(jnp.asarray(redshift), jnp.asarray(mass)), np.float64))
    assert np.trapezoid(np.trapezoid(values, mass), redshift) == pytest.approx(1.0, abs=2e-3)


def test_density_integrates_to_one_over_independent_draws(prior):
    """E_q[p / q] = 1 with q a product of densities that owe nothing to the prior's own sampler."""
    random = np.random.default_rng(0)
    n = 100_000
    phi = random.normal(size=(n, 16))
    redshift = np.asarray(to_physical(prior.space, jnp.asarray(phi, jnp.float32)))[:, -1].astype(float)
    mass = random.uniform(*MASS_RANGE, size=n)
    phi[:, 0] = Planck18.distmod(np.clip(redshift, 1e-3, None)).value - 2.5 * mass
    # SFR ratios are narrow in phi: 1.5 x wider than the prior's core, with heavy tails.
    ratios = stats.t(3, scale=0.11)
    phi[:, 2:8] = ratios.rvs(size=(n, 6), random_state=1)
    log_q = stats.norm.logpdf(phi[:, [1, *range(8, 16)]]).sum(1) + ratios.logpdf(phi[:, 2:8]).sum(1)
    log_q += np.log(0.4 / (MASS_RANGE[1] - MASS_RANGE[0]))
    log_p = jax.jit(jax.vmap(prior.log_prob))(jnp.asarray(phi, jnp.float32))
    weight = np.exp(np.asarray(log_p, np.float64) - log_q)
    error = weight.std() / np.sqrt(n)
    assert error < 0.05
    assert abs(weight.mean() - 1.0) < 4 * error


def test_wide_draws_carry_exact_weights(draws):
    direct, wide, weight, _ = draws
    error = weight.std() / np.sqrt(N_DRAWS)
    assert abs(weight.mean() - 1.0) < 4 * error
    for name in NAMES:
        edges = np.quantile(column(direct, name), np.linspace(0, 1, 11))[1:-1]
        bins = np.digitize(column(wide, name), edges)
        shares = np.bincount(bins, weights=weight, minlength=10) / N_DRAWS
        sigma = np.sqrt(np.bincount(bins, weights=weight**2, minlength=10) / N_DRAWS**2 + 0.1 / N_DRAWS)
        assert np.all(np.abs(shares - 0.1) < 4.5 * sigma), name


def test_wide_draws_cover_massive_nearby_galaxies(draws):
    direct, wide, _, _ = draws
    bright = lambda theta: np.mean((log10_mass(theta) > 10.0) & (column(theta, "redshift") < 1.0))  # noqa: E731
    assert bright(wide) > 0.15 > 20 * bright(direct)


def test_draws_follow_their_conditionals(draws):
    direct = draws[0]
    mass = log10_mass(direct)
    assert MASS_RANGE[0] - 1e-3 < mass.min() and mass.max() < MASS_RANGE[1] + 1e-3
    gas = (column(direct, "gaslog10Z") - column(direct, "log10Z")) / (0.5 - column(direct, "log10Z"))
    probabilities = {"gas": gas}
    mean = -0.25933163 + 0.38391743 * np.tanh(2.0229099 * mass - 20.37321787)
    sigma = 0.6883885 - 0.37122853 * np.tanh(2.47629773 * mass - 25.74109587)
    truncated = lambda x, m, s, a, b: stats.truncnorm.cdf(x, (a - m) / s, (b - m) / s, m, s)  # noqa: E731
    probabilities["Z"] = truncated(column(direct, "log10Z"), mean, sigma, -1.98, 0.19)
    dust = column(direct, "dust2")
    probabilities["dust2"] = truncated(dust, 0.3, 1.0, 0.0, 4.0)
    probabilities["dust1"] = truncated(column(direct, "dust1_fraction"), 1.0, 0.3, 0.0, 2.0)
    slope = -0.095 + 0.111 * dust - 0.0066 * dust**2
    probabilities["index"] = truncated(column(direct, "dust_index"), slope, 0.4, -1.0, 0.4)
    low, high = stats.t(2, scale=0.3).cdf([-5.0, 5.0])
    for index in range(1, 7):
        cdf = stats.t(2, scale=0.3).cdf(column(direct, f"logsfr_ratio{index}"))
        probabilities[f"ratio{index}"] = (cdf - low) / (high - low)
    for name in ("lnfagn", "lnagntau", "gaslog10U"):
        bound = POP_COSMOS.parameters[NAMES.index(name)]
        probabilities[name] = (column(direct, name) - bound.lower) / (bound.upper - bound.lower)
    for name, values in probabilities.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-4, name


def test_density_of_theta_matches_the_formulae(prior, draws):
    """Differences of ln density between draws, against scipy's densities."""
    phi = draws[3][:200]
    theta = np.asarray(to_physical(prior.space, phi), np.float64)
    mass = log10_mass(theta)
    log_density = np.log(Planck18.differential_comoving_volume(column(theta, "redshift")).value)
    log_density += np.asarray(
        jax.vmap(log_mass_function)(
            jnp.asarray(mass, jnp.float32), jnp.asarray(column(theta, "redshift"), jnp.float32)
        )
    )
    mean = -0.25933163 + 0.38391743 * np.tanh(2.0229099 * mass - 20.37321787)
    sigma = 0.6883885 - 0.37122853 * np.tanh(2.47629773 * mass - 25.74109587)
    truncated = lambda x, m, s, a, b: stats.truncnorm.logpdf(x, (a - m) / s, (b - m) / s, m, s)  # noqa: E731
    log_density += truncated(column(theta, "log10Z"), mean, sigma, -1.98, 0.19)
    log_density -= np.log(0.5 - column(theta, "log10Z"))
    dust = column(theta, "dust2")
    log_density += truncated(dust, 0.3, 1.0, 0.0, 4.0)
    log_density += truncated(column(theta, "dust1_fraction"), 1.0, 0.3, 0.0, 2.0)
    slope = -0.095 + 0.111 * dust - 0.0066 * dust**2
    log_density += truncated(column(theta, "dust_index"), slope, 0.4, -1.0, 0.4)
    log_density += stats.t(2, scale=0.3).logpdf(theta[:, 2:8]).sum(1)
    log_density += stats.norm.logpdf(np.asarray(phi[:, 1:], np.float64)).sum(1)
    ours = np.asarray(jax.jit(jax.vmap(prior.log_prob))(phi), np.float64)
    difference = ours - log_density
    np.testing.assert_allclose(difference, np.median(difference), atol=5e-3)


def test_redshift_distribution_is_sensible_beyond_the_fits(draws):
    """Clamped coefficients: the density per volume must neither vanish nor grow past z = 3."""
    redshift = jnp.asarray([2.9, 3.0, 4.0, 6.0])
    for mass in (8.0, 10.0, 11.0):
        density = np.asarray(jax.vmap(log_mass_function, (None, 0))(jnp.float32(mass), redshift))
        np.testing.assert_allclose(density[1:], density[1])
        assert abs(density[0] - density[1]) < 0.3
    counts, _ = np.histogram(column(draws[0], "redshift"), np.arange(0.0, 6.5, 0.5))
    assert np.all(counts > 0)
    ratio = counts[6:] / np.roll(counts, 1)[6:]
    assert np.all((ratio > 0.8) & (ratio < 1.2)), "n(z) beyond z = 3 follows the volume"


def test_outside_the_support_is_lowest_and_never_nan(prior):
    good = np.zeros(16)
    for value in (1e20, -1e38, np.inf, -np.inf, np.nan, 0.0):
        phi = good.copy()
        phi[0] = value
        assert float(prior.log_prob(jnp.asarray(phi, jnp.float32))) == pytest.approx(LOWEST)
    for value in (1e20, -1e38):
        assert np.isfinite(float(prior.log_prob(jnp.full(16, value, jnp.float32))))


def test_redshift_range_is_respected():
    narrow = AnalyticPrior(pop_cosmos(2.0), 0.1, 1.0)
    keys = jax.random.split(jax.random.PRNGKey(0), 500)
    direct_and_wide = jax.jit(jax.vmap(lambda key: (narrow.sample_base(key), narrow.propose_base(key)[0])))(
        keys
    )
    for u in direct_and_wide:
        theta = to_physical(narrow.space, jax.jit(jax.vmap(narrow.transport))(u))
        assert theta[:, -1].min() > 0.0999 and theta[:, -1].max() < 1.0001
    with pytest.raises(ConfigurationError, match="redshift range"):
        AnalyticPrior(pop_cosmos(2.0), 0.1, 3.0)
    with pytest.raises(ConfigurationError, match="the parameters"):
        AnalyticPrior(ParameterSpace((Parameter("N", "", "", "identity"),)))


def test_gaussian_prior_matches_scipy():
    space = ParameterSpace(tuple(Parameter(name, "", "", "identity") for name in "abc"))
    root = np.array([[1.0, 0, 0], [0.5, 2.0, 0], [-0.3, 0.1, 0.4]])
    prior = GaussianPrior(space, [1.0, 2.0, 3.0], root)
    reference = stats.multivariate_normal([1.0, 2.0, 3.0], root @ root.T)
    phi = np.random.default_rng(0).normal(size=(5, 3))
    ours = jax.vmap(prior.log_prob)(jnp.asarray(phi, jnp.float32))
    np.testing.assert_allclose(ours, reference.logpdf(phi), rtol=1e-4)
    u, log_weight = prior.propose_base(jax.random.PRNGKey(0))
    np.testing.assert_allclose(
        prior.base_log_prob(u) - np.log(np.prod(np.diag(root))), prior.log_prob(prior.transport(u)), rtol=1e-4
    )
    assert log_weight == 0.0


def test_base_density_is_the_density_of_phi_pulled_back():
    """Ln p(u) = ln p(phi(u)) + ln |det d phi / d u|."""
    prior = AnalyticPrior(redshift_max=2.0)

    def both(key):
        u = prior.sample_base(key)
        densities = prior.base_log_prob(u), prior.log_prob(prior.transport(u))
        return u, *densities, jax.jacfwd(prior.transport)(u)

    u, base, latent, jacobian = jax.jit(jax.vmap(both))(jax.random.split(jax.random.PRNGKey(5), 100))
    # Beyond 3 sigma float32 quantiles near the bounds lose the derivative, not the value.
    fine = np.all(np.abs(np.delete(np.asarray(u), [0, 15], axis=1)) < 3, axis=1)
    assert fine.sum() > 80
    _, log_det = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    np.testing.assert_allclose((base - latent - log_det)[fine], 0.0, atol=0.02)
