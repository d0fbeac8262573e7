import numpy as np
import pytest

from popcosmos_hpc.report import metrics


def test_scaled_residual_by_hand():
    np.testing.assert_allclose(
        metrics.scaled_residual(np.array([1.1, 0.2]), np.array([1.0, 0.5])), [0.05, -0.2]
    )


def test_point_metrics_by_hand():
    dz = np.array([-0.30, -0.01, 0.00, 0.02, 0.16])
    found = metrics.point_metrics(dz + 0.0, np.zeros(5))
    # median 0; |dz - 0| sorted: 0, .01, .02, .16, .30 -> median .02
    assert found.n == 5
    assert found.bias.value == pytest.approx(0.0)
    assert found.sigma_mad.value == pytest.approx(1.4826 * 0.02)
    assert found.outliers.value == pytest.approx(2 / 5)
    # quartiles -0.01 and 0.02: sigma_iqr = .03 / 1.349; 3 sigma_iqr = .0667 > .06
    assert found.sigma_iqr.value == pytest.approx(0.03 / 1.349)
    assert found.rail_outliers.value == pytest.approx(2 / 5)


def test_sigma_mad_is_centred_on_the_median():
    dz = np.array([0.09, 0.10, 0.12])
    assert metrics.sigma_mad(dz) == pytest.approx(1.4826 * 0.01)


def test_rail_threshold_never_below_its_floor():
    dz = np.concatenate([np.zeros(98), [0.05, 0.07]])
    assert metrics.rail_outlier_fraction(dz) == pytest.approx(0.01)


def test_metrics_leave_out_non_finite_pairs():
    found = metrics.point_metrics(np.array([0.1, np.nan, 0.3]), np.array([0.1, 0.2, np.nan]))
    assert found.n == 1
    assert found.bias.value == 0.0
    assert np.isnan(found.bias.error)


def test_no_galaxies_give_nan_not_an_error():
    found = metrics.point_metrics(np.array([]), np.array([]))
    assert found.n == 0
    assert f"{found.bias:.3f}" == "n/a"


def test_bootstrap_error_of_a_mean_and_a_median():
    values = np.random.default_rng(1).normal(size=4000)
    mean = metrics.bootstrap_error(values, lambda x: x.mean(axis=-1), resamples=400)
    median = metrics.bootstrap_error(values, metrics.bias, resamples=400)
    assert mean == pytest.approx(1 / np.sqrt(4000), rel=0.12)
    assert median == pytest.approx(np.sqrt(np.pi / 2 / 4000), rel=0.15)


def test_bootstrap_repeats_with_its_seed_and_not_with_the_chunk(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    first = metrics.bootstrap_error(values, metrics.sigma_mad, seed=3)
    assert metrics.bootstrap_error(values, metrics.sigma_mad, seed=3) == first
    assert metrics.bootstrap_error(values, metrics.sigma_mad, seed=4) != first
    monkeypatch.setattr(metrics, "_BOOTSTRAP_CHUNK", 500)
    assert metrics.bootstrap_error(values, metrics.sigma_mad, seed=3) == pytest.approx(first, rel=1e-12)


def test_bins_are_half_open_and_small_ones_left_out():
    truth, by = np.full(25, 0.5), np.concatenate([np.full(12, 20.0), np.full(12, 21.0), [22.5]])
    rows = metrics.binned_point_metrics(truth, truth, by, np.array([20.0, 21.0, 22.0, 23.0]))
    assert [(low, high, found.n) for low, high, found in rows] == [(20.0, 21.0, 12), (21.0, 22.0, 12)]


LEVELS = np.linspace(0, 1, 21)


def test_cdf_and_stack_of_uniform_distributions():
    quantiles = np.stack([LEVELS, 1 + LEVELS])  # uniform on [0, 1] and on [1, 2]
    np.testing.assert_allclose(
        metrics.cdf_of_quantiles(quantiles, LEVELS, np.array([0.5, 1.25])), [[0.5, 1], [0, 0.25]]
    )
    np.testing.assert_allclose(
        metrics.stacked_density(quantiles, LEVELS, np.array([0, 0.5, 1.5, 2])), [0.5, 1, 0.5]
    )


def test_stack_keeps_all_probability_of_inner_levels():
    levels = np.linspace(0.025, 0.975, 21)
    quantiles = np.sort(np.random.default_rng(0).uniform(0.2, 1.8, (40, 21)), axis=1)
    quantiles = np.concatenate([quantiles, np.full((1, 21), np.nan)])
    assert metrics.stacked_density(quantiles, levels, np.linspace(0, 2, 30)).sum() == pytest.approx(40)


def test_degenerate_distribution_is_a_step():
    cdf = metrics.cdf_of_quantiles(np.full((1, 21), 0.5), LEVELS, np.array([0.4, 0.6]))
    np.testing.assert_allclose(cdf, [[0.0, 1.0]])


def test_pit_is_uniform_for_true_posteriors():
    rng = np.random.default_rng(5)
    centre = rng.normal(size=3000)
    levels = np.linspace(0.01, 0.99, 21)
    from scipy.stats import norm

    quantiles = centre[:, None] + norm.ppf(levels)[None, :]
    pit = metrics.pit_values(quantiles, levels, centre + rng.normal(size=3000))
    assert metrics.ks_uniform(pit) < 1.63 / np.sqrt(3000)  # 1 percent level
    assert metrics.coverage(pit, 0.68).value == pytest.approx(0.68, abs=0.03)


def test_pit_outside_the_quantiles_and_without_truth():
    quantiles = np.tile(np.linspace(1, 2, 3), (3, 1))
    pit = metrics.pit_values(quantiles, np.array([0.1, 0.5, 0.9]), np.array([0.0, 3.0, np.nan]))
    np.testing.assert_allclose(pit, [0.05, 0.95, np.nan])


def test_ks_by_hand():
    assert metrics.ks_uniform(np.array([0.5])) == pytest.approx(0.5)
    assert metrics.ks_uniform(np.array([0.1, 0.2])) == pytest.approx(0.8)


def test_offset_and_scatter():
    n, offset, scatter = metrics.offset_and_scatter(np.array([1.0, 1.1, 1.4, np.nan]), np.ones(4))
    assert n == 3
    assert offset.value == pytest.approx(0.1)
    assert scatter.value == pytest.approx(1.4826 * 0.1)
