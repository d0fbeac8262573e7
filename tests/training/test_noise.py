"""Learning flux errors: a law that is known, what is refused, and surveys made from published formulae."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from popcosmos_hpc.cli import main
from popcosmos_hpc.errors import ConfigurationError, SchemaError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, load_uncertainty
from popcosmos_hpc.model.noise import LN_NANOMAGGIES
from popcosmos_hpc.training.error_model import galaxy_magnitudes, scale_length, simulate_errors
from popcosmos_hpc.training.noise import (
    fit_trend,
    train_uncertainty,
    train_uncertainty_bundle,
    training_rows,
)
from popcosmos_hpc.training.noise_accuracy import depths, draw_errors
from popcosmos_hpc.training.noise_recipe import (
    GaapSource,
    Galaxies,
    RubinSource,
    TableSource,
    UncertaintyRecipe,
    load_uncertainty_recipe,
)
from popcosmos_hpc.training.noise_table import read_errors

BANDS = ("g", "r", "i")
SKY, PHOTONS, FRACTION = np.array([0.02, 0.05, 0.1]), 2e-3, 0.01
OWN, COMMON = 0.1, 0.2
TABLE = TableSource(path="unused", bands=BANDS)
RECIPE = UncertaintyRecipe(
    name="law", source=TABLE, width=32, depth=2, n_rounds=8, batch_size=512, average=0.99, seed=3
)
SHORT = RECIPE.model_copy(update={"n_rounds": 1, "width": 8, "depth": 1, "batch_size": 10_000})


def law(flux):
    """Median error (row, band) of the synthetic survey."""
    return np.sqrt(SKY**2 + PHOTONS * flux + (FRACTION * flux) ** 2)


def synthetic(count, seed):
    """Fluxes of magnitudes 18 to 26, and errors that scatter together."""
    rng = np.random.default_rng(seed)
    magnitude = rng.uniform(18, 26, (count, 1)) + 0.5 * rng.standard_normal((count, 3))
    flux = 10 ** (0.4 * (22.5 - magnitude))
    scatter = COMMON * rng.standard_normal((count, 1)) + OWN * rng.standard_normal((count, 3))
    return flux, law(flux) * np.exp(scatter)


def write(path, flux, flux_err, **more):
    columns = {f"flux_{band}": flux[:, k] for k, band in enumerate(BANDS)}
    columns |= {f"flux_err_{band}": flux_err[:, k] for k, band in enumerate(BANDS)}
    pq.write_table(pa.table({**columns, **more}), path)
    return path


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    path = write(folder / "survey.parquet", *synthetic(15_000, 1))
    source = TableSource(path=str(path), bands=BANDS)
    return train_uncertainty_bundle(RECIPE.model_copy(update={"source": source}), folder / "law")


def test_the_law_and_its_correlated_scatter_are_recovered(learned):
    model = load_uncertainty(learned)
    flux, _ = synthetic(8000, 7)
    departure = np.log(draw_errors(model, flux, 5) / law(flux))
    width = np.hypot(OWN, COMMON)
    order = np.argsort(flux[:, 1])
    for part in np.array_split(order, 8):
        # 1000 rows each: errors of 0.009 of a median and of 0.0075 of a half-width, 3 and 4 of them,
        # and 0.02 for the network.
        low, middle, high = np.percentile(departure[part], [16, 50, 84], axis=0)
        np.testing.assert_allclose(middle, 0.0, atol=0.05)
        np.testing.assert_allclose(0.5 * (high - low), width, atol=0.05)
    correlation = np.corrcoef(departure.T)[np.triu_indices(3, 1)]
    # 8000 rows have errors of (1 - 0.8^2) / 90 = 0.004.
    np.testing.assert_allclose(correlation, COMMON**2 / width**2, atol=0.05)


def test_the_held_out_measure_is_in_the_bundle(learned):
    manifest = load_bundle(learned).manifest
    accuracy = manifest["accuracy"]
    assert accuracy["median"]["value"] < 0.08 and accuracy["classifier_accuracy"] < 0.56
    assert accuracy["width_68"]["value"] < 0.15
    assert [len(rows) for rows in manifest["quantiles"].values()] == [8, 8, 8]
    assert manifest["training_rows"]["used"] == 15_000 and manifest["training_rows"]["incomplete"] == 0
    sky = 22.5 - 2.5 * np.log10(5 * np.sqrt(SKY**2 + PHOTONS * 5 * SKY))
    np.testing.assert_allclose([manifest["depth"][band] for band in BANDS], sky, atol=0.1)


def test_a_trend_follows_a_steep_and_narrow_law():
    flux, _ = synthetic(20_000, 2)
    rng = np.random.default_rng(2)
    narrow = law(flux) * np.exp(0.02 * rng.standard_normal(flux.shape))
    magnitude = 22.5 - 2.5 * np.log10(flux)
    trend = fit_trend(magnitude, np.log(narrow))
    centre, width = (np.asarray(v) for v in jax.vmap(trend)(jnp.asarray(magnitude, jnp.float32)))
    inner = (magnitude > 18) & (magnitude < 26)
    assert np.abs(centre - np.log(law(flux)))[inner].max() < 0.02
    assert np.abs(width[inner] / 0.02 - 1).max() < 0.4 and abs(np.median(width) / 0.02 - 1) < 0.05


def test_a_knot_without_rows_stays_in_line():
    """Many galaxies without any flux share one magnitude."""
    magnitude = np.where(np.arange(3000) % 3 == 0, 27.0, np.linspace(20, 26, 3000))[:, None]
    trend = fit_trend(magnitude, -0.5 * magnitude)
    centre = np.asarray(trend.centre)[0]
    np.testing.assert_allclose(centre, -0.5 * np.asarray(trend.knots)[0], atol=0.02)


def test_one_band_alone_is_a_model_too():
    flux, error = (part[:, :1] for part in synthetic(2000, 4))
    model = train_uncertainty(flux, error, ("g",), SHORT)
    drawn = draw_errors(model, flux, 1)
    # Hardly trained: still the trend, and its width within a third.
    departure = np.log(drawn[:, 0] / law(np.repeat(flux, 3, axis=1))[:, 0])
    assert abs(np.median(departure)) < 0.05
    assert abs(departure.std() / np.hypot(OWN, COMMON) - 1) < 0.35


def test_one_band_alone_goes_through_its_bundle(tmp_path):
    """Nothing on the way from a table to a mock needs a second band."""
    path = write(tmp_path / "t.parquet", *synthetic(1000, 4))
    source = TableSource(path=str(path), bands=("r",))
    made = train_uncertainty_bundle(SHORT.model_copy(update={"source": source}), tmp_path / "b")
    flux = jnp.array([9.0, 1.0])
    drawn = load_uncertainty(made).select(("r",), given=("g", "r")).sample(jax.random.PRNGKey(1), flux)
    expected = np.sqrt(SKY[1] ** 2 + PHOTONS + FRACTION**2)
    # One draw of a scatter of 0.22, of a model that has hardly been trained.
    assert drawn.shape == (1,) and abs(np.log(float(drawn[0]) / expected)) < 1.0
    assert load_bundle(made).manifest["training_rows"]["used"] == 1000


@pytest.mark.parametrize("bands", [(), ("g", "g")])
def test_no_band_or_one_twice_is_refused(bands, tmp_path):
    recipe = {"name": "x", "source": {"kind": "table", "path": "t.parquet", "bands": list(bands)}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigurationError, match="at least one band, and none twice"):
        load_uncertainty_recipe(tmp_path / "r.yaml")


def test_softening_of_an_unknown_band_is_refused():
    flux, error = synthetic(500, 5)
    with pytest.raises(ConfigurationError, match="z"):
        train_uncertainty(flux, error, BANDS, SHORT.model_copy(update={"softening": {"z": 0.1}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, e: f.__setitem__((3, 1), np.nan), "r in 1 rows"),
        (lambda f, e: e.__setitem__((slice(0, 2), 0), np.inf), "g in 2 rows"),
        (lambda f, e: e.__setitem__((0, 2), 0.0), "i in 1 rows"),
        (lambda f, e: f.__setitem__((slice(None), 2), 1.0), "fluxes that vary"),
    ],
)
def test_bad_rows_are_refused(spoil, message):
    flux, error = synthetic(500, 5)
    spoil(flux, error)
    with pytest.raises(TrainingError, match=message):
        train_uncertainty(flux, error, BANDS, SHORT)


def test_too_few_rows_and_other_shapes_are_refused():
    flux, error = synthetic(149, 5)
    with pytest.raises(TrainingError, match="at least 150 complete rows"):
        train_uncertainty(flux, error, BANDS, SHORT)
    with pytest.raises(TrainingError, match="shapes"):
        train_uncertainty(flux, error, BANDS[:2], SHORT)


def test_rows_that_lack_a_band_are_left_out_and_counted(tmp_path):
    flux, error = synthetic(300, 6)
    flux[:40, 0], error[:50, 0], error[60:65, 2] = np.nan, np.nan, 0.0
    path = write(tmp_path / "t.parquet", flux, error, good=np.arange(300) < 290)
    rows = read_errors(TableSource(path=str(path), bands=BANDS, where="good"), 1)
    assert rows.counts == {
        "read": 300, "not_selected": 10, "incomplete": 55, "used": 235,
        "missing": {"g": 50, "r": 0, "i": 5},
    }  # fmt: skip
    np.testing.assert_array_equal(rows.flux[0], flux[50])
    with pytest.raises(TrainingError, match=r"none among 40 selected ones; missing: .*'g': 40"):
        read_errors(TableSource(path=str(write(path, flux[:40], error[:40])), bands=BANDS), 1)


def test_a_preset_says_what_columns_mean_and_rounding_is_undone(tmp_path):
    rng = np.random.default_rng(8)
    magnitude, error = rng.uniform(18, 24, (400, 2)), np.full((400, 2), 0.02)
    magnitude[:30, 1] = -99
    table = {"id": np.arange(400), "ra": np.zeros(400), "dec": np.zeros(400), "star": np.arange(400) % 2}
    table |= {f"mag_{b}": magnitude[:, k] for k, b in enumerate("gr")}
    table |= {f"err_{b}": error[:, k] for k, b in enumerate("gr")}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    preset = {
        "name": "p", "id": "id", "ra": "ra", "dec": "dec", "missing_values": [-99], "quality": "star == 0",
        "bands": [{"name": b, "mag": f"mag_{b}", "err": f"err_{b}"} for b in "gr"],
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(preset))
    source = TableSource(path=str(tmp_path / "t.parquet"), preset=str(tmp_path / "p.yaml"))
    rows = read_errors(source, 1)
    assert rows.counts == {
        "read": 400, "not_selected": 200, "incomplete": 15, "used": 185, "missing": {"g": 0, "r": 15},
    }  # fmt: skip
    np.testing.assert_allclose(rows.flux_err / rows.flux, 0.02 * np.log(10) / 2.5, rtol=1e-5)
    stepped = read_errors(source.model_copy(update={"error_step": 0.01}), 1)
    ratio = stepped.flux_err / rows.flux_err
    assert ratio.min() >= 0.75 - 1e-6 and ratio.max() <= 1.25 + 1e-6
    # Uniform between 3/4 and 5/4: a deviation of 0.144, of which 370 values have an error of 0.003.
    assert abs(ratio.std() - 0.144) < 0.015 and abs(ratio.mean() - 1) < 0.03


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"path": "$NO_SUCH_VARIABLE/t.parquet"}, ConfigurationError, "NO_SUCH_VARIABLE"),
        ({"bands": ("g", "K")}, ConfigurationError, "flux_K"),
        ({"where": "missing > 2"}, ConfigurationError, "missing"),
        ({"preset": "toy", "bands": ("g", "Q")}, ConfigurationError, "Q"),
        ({"preset": "toy", "bands": ("g",)}, SchemaError, "object_id"),
    ],
)
def test_files_columns_and_bands_that_are_not_there(changes, error, message, tmp_path):
    path = write(tmp_path / "t.parquet", *synthetic(10, 1))
    with pytest.raises(error, match=message):
        read_errors(TableSource(**({"path": str(path), "bands": BANDS} | changes)), 1)


def test_recipes_that_are_wrong_are_refused(tmp_path):
    for text in ("name: a\nsource: {kind: table, path: x}", "name: a\nsource: {kind: magic}", "- 1", "a: ["):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"r\.yaml"):
            load_uncertainty_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigurationError, match="no file"):
        load_uncertainty_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["kids", "lsst10", "zcosmos"])
def test_shipped_recipes_load(name, repository):
    recipe = load_uncertainty_recipe(repository / f"configs/training/noise_{name}.yaml")
    assert recipe.name == f"noise_{name}" and recipe.citations


def test_the_verb_trains_from_a_file_and_shows_what_it_made(tmp_path):
    path = write(tmp_path / "t.parquet", *synthetic(1000, 9))
    recipe = SHORT.model_dump(mode="json", exclude={"source", "citations"})
    recipe["source"] = {"kind": "table", "path": str(path), "bands": list(BANDS)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "bundle"
    arguments = ["train", "uncertainty", str(tmp_path / "r.yaml"), "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert list(tmp_path.glob("bundle.checkpoints/law-*.eqx"))
    shown = CliRunner().invoke(main, ["bundle", "show", str(out)]).output
    assert "kind        uncertainty" in shown and "classifier accuracy" in shown and "g, r, i" in shown
    pq.write_table(pa.table({"flux_g": [1.0]}), path)
    wrong = CliRunner().invoke(main, arguments)
    assert wrong.exit_code == 2 and "flux_r" in wrong.output


# -- surveys from published formulae


def pointings(tmp_path, number=50, scatter=0.2):
    """Sky noise and seeing of pointings; their medians are 3 and 0.8 arcsec."""
    rng = np.random.default_rng(1)
    noise = 3.0 * np.exp(scatter * rng.standard_normal(number))
    path = tmp_path / "pointings.parquet"
    pq.write_table(pa.table({"noise": noise, "other": noise[::-1], "seeing": np.full(number, 0.8)}), path)
    return path


def gaap(path, **changes):
    band = {"depth": 25.0, "noise": "noise", "seeing": "seeing", "electrons": 1e30}
    facts = {
        "kind": "gaap", "pointings": str(path), "detection": "r", "local_scatter": 0.0,
        "zero_point_scatter": 0.0, "smoothing": 0.0,
        "galaxies": {"number": 4000, "reference": "r", "magnitude": [20.0, 26.0], "no_light": 0.0},
        "bands": {"g": band, "r": band | {"noise": "other"}},
    }  # fmt: skip
    return GaapSource(**(facts | changes))


def test_gaussian_apertures_of_small_galaxies_are_those_of_the_formula(tmp_path):
    tiny = {"number": 4000, "reference": "r", "magnitude": [40.0, 41.0]}
    _, error = simulate_errors(gaap(pointings(tmp_path), galaxies=Galaxies(**tiny)), 1)
    psf = 0.8 / 2.3548
    aperture = np.hypot(0.7, psf)
    expected = 10 ** (0.4 * (22.5 - 25.0)) / 5 * aperture**2 / np.sqrt(aperture**2 - psf**2)
    # Medians of 50 pointings of 0.2 each, drawn 4000 times: 1.25 * 0.2 / 63 = 0.004.
    np.testing.assert_allclose(np.median(error, axis=0), expected, rtol=0.03)
    logs = np.log(error)
    np.testing.assert_allclose(logs.std(axis=0), 0.2, atol=0.05)


def test_errors_grow_with_galaxies_and_photons_and_share_pointings(tmp_path):
    path = pointings(tmp_path)
    plain, counted = (
        simulate_errors(gaap(path, bands={b: {**band, "electrons": n} for b, band in two.items()}), 2)
        for two in [{b: gaap(path).bands[b].model_dump() for b in ("g", "r")}]
        for n in (1e30, 1e3)
    )
    np.testing.assert_allclose(counted.flux_err**2 - plain.flux_err**2, plain.flux / 1e3, rtol=1e-6)
    magnitude = 22.5 - 2.5 * np.log10(plain.flux[:, 1])
    bright, faint = (np.median(plain.flux_err[part, 1]) for part in (magnitude < 21, magnitude > 25))
    assert bright > 1.3 * faint  # larger galaxies have larger apertures
    again = simulate_errors(gaap(path), 2)
    np.testing.assert_array_equal(again.flux_err, plain.flux_err)
    smooth = simulate_errors(gaap(path, smoothing=0.5), 2)
    assert len(np.unique(smooth.flux_err[:, 0])) == 4000
    assert abs(np.log(smooth.flux_err).std() / np.log(plain.flux_err).std() - 1) < 0.05


def rubin(**changes):
    band = {"depth": 27.0, "visits": 100.0, "gamma": 0.039, "seeing": 0.8}
    galaxies = {"number": 4000, "reference": "r", "magnitude": [20.0, 28.0], "no_light": 0.0}
    facts = {"kind": "rubin", "bands": {"g": band, "r": band}, "galaxies": galaxies, "depth_scatter": 0.0}
    return RubinSource(**(facts | changes))


def test_rubins_point_sources_follow_its_error_model():
    tiny = {"number": 4000, "reference": "r", "magnitude": [49.0, 50.0], "no_light": 0.0}
    _, error = simulate_errors(rubin(galaxies=Galaxies(**tiny)), 1)
    # Sky alone: gamma instead of 0.04 of the squared limiting flux.
    np.testing.assert_allclose(error, np.sqrt(0.039) * 10 ** (0.4 * (22.5 - 27.0)), rtol=1e-3)
    bright = rubin(galaxies=Galaxies(number=4000, reference="r", magnitude=(10.0, 11.0), no_light=0.0))
    flux, error = simulate_errors(bright, 1)
    assert np.all((error / flux > 0.005) & (error / flux < 0.0055))


def test_rubins_depth_varies_together():
    tiny = {"number": 20_000, "reference": "r", "magnitude": [49.0, 50.0], "no_light": 0.0}
    source = rubin(galaxies=Galaxies(**tiny), depth_scatter=0.1, depth_correlation=0.5)
    magnitudes = -2.5 * np.log10(simulate_errors(source, 3).flux_err)
    # 20 000 draws: errors of 0.0005 of the deviation, 0.005 of the correlation.
    np.testing.assert_allclose(magnitudes.std(axis=0), 0.1, atol=0.003)
    assert abs(np.corrcoef(magnitudes.T)[0, 1] - 0.5) < 0.025


def test_galaxies_have_sizes_colours_and_sometimes_no_light():
    rng = np.random.default_rng(5)
    lengths = scale_length(np.full(20_000, 23.0), rng)
    assert abs(np.median(lengths) / np.exp(-1.145) - 1) < 0.03  # error of the median 0.7 * 1.25 / 141
    galaxies = Galaxies(number=20_000, reference="i", magnitude=(20.0, 21.0), no_light=0.2)
    magnitude = galaxy_magnitudes(galaxies, ("u", "g", "r", "i", "z"), rng)
    assert np.all((magnitude[:, 3] >= 20) & (magnitude[:, 3] <= 21)) and np.all(np.isfinite(magnitude[:, 4]))
    assert abs(np.mean(np.isinf(magnitude[:, 0])) - 0.1) < 0.009  # of the fainter half; four errors
    lit = magnitude[np.isfinite(magnitude[:, 0])]
    assert abs(np.median(lit[:, 0] - lit[:, 1]) - 0.3) < 0.03


def test_unknown_bands_and_columns_of_a_simulation_are_refused(tmp_path):
    path = pointings(tmp_path)
    with pytest.raises(ConfigurationError, match="Q"):
        simulate_errors(gaap(path, detection="Q"), 1)
    bands = {"r": {"depth": 25.0, "noise": "nothing", "seeing": "seeing", "electrons": 1.0}}
    with pytest.raises(ConfigurationError, match="nothing"):
        simulate_errors(gaap(path, bands=bands), 1)
    with pytest.raises(TrainingError, match="two pointings"):
        simulate_errors(gaap(pointings(tmp_path, number=1)), 1)


def test_depth_is_where_the_signal_is_five_times_the_noise():
    flux = 10 ** (0.4 * (22.5 - np.linspace(20, 28, 5000)))[:, None]
    assert depths(flux, np.full_like(flux, 0.02), ("g",)) == {"g": 25.0}
    assert depths(flux, np.full_like(flux, 1e-5), ("g",)) == {}  # 500 sigma at the least


def test_shipped_zcosmos_rows_are_counted(shared, repository, monkeypatch):
    table = shared / "data/zcosmos_bright20k/zcosmos_bright20k_with_mass.parquet"
    if not table.is_file():
        pytest.skip("no zCOSMOS table among the shared data")
    monkeypatch.setenv("ZCOSMOS_TABLE", str(table))
    rows = training_rows(load_uncertainty_recipe(repository / "configs/training/noise_zcosmos.yaml"))
    stated = load_bundle("noise_zcosmos").manifest["training_rows"]
    assert {key: stated[key] for key in rows.counts} == rows.counts
    assert rows.counts["not_selected"] + rows.counts["incomplete"] + rows.counts["used"] == 17352
    ln_error = np.log(rows.flux_err) - LN_NANOMAGGIES
    assert np.all((ln_error > -28) & (ln_error < -19.5))
