"""Importing a release of any size: its bundles give what the raw numbers give."""

import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy.stats import gennorm

from popcosmos_hpc.cli import main
from popcosmos_hpc.config import LikelihoodConfig
from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.bundle import load_bundle, load_population, load_uncertainty
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.training.published_archive import read_numpy, read_pickle, read_torch_archive
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from popcosmos_hpc.training.published_import import import_release, models_of
from tests.published_models import (
    make_generator,
    make_layers,
    make_mlp,
    make_model,
    make_noise,
    make_photulator,
    write_release,
)
from tests.torch_archive import Module, write_archive, write_raw

BANDS = ("u_megaprime_sagem", "hsc_i", "a_b.new")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def imported(release, tmp_path_factory):
    return import_release(release.parent, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def bundle(imported):
    return load_bundle(imported.bundles[0])


@pytest.fixture(scope="module")
def theta():
    rng = np.random.default_rng(4)
    lower = np.array(
        [18.0 if p.name == "N" else 0.7 * p.lower + 0.3 * p.upper for p in POP_COSMOS.parameters]
    )
    upper = np.array(
        [22.0 if p.name == "N" else 0.3 * p.lower + 0.7 * p.upper for p in POP_COSMOS.parameters]
    )
    drawn = rng.uniform(lower, upper, (6, 16)).astype(np.float32)
    drawn[:, -1] = rng.uniform(0.0, 1.0, 6)  # redshifts at which lines lie in bands
    return drawn


def activated(a, alpha, beta):
    return (beta + (1 - beta) / (1 + np.exp(-alpha * a))) * a


def photulator_flux(path, theta):
    """Flux [nanomaggies] for N = 0 of one band, from the arrays of its file."""
    state = read_torch_archive(path)
    of = lambda name: list(state.get(name).state["_parameters"].values())  # noqa: E731
    x = theta[1:].astype(np.float64)
    x[7] = np.sqrt(x[7])
    h = (x - state.get("parameters_shift")) / state.get("parameters_scale")
    for weight, bias, alpha, beta in zip(of("W"), of("b"), of("alphas"), of("betas"), strict=True):
        h = activated(h @ weight.astype(np.float64) + bias, alpha, beta)
    magnitude = h[0] * state.get("magnitudes_scale") + state.get("magnitudes_shift")
    return 10 ** (0.4 * (22.5 - magnitude))


def line_flux(root, band, theta, wave):
    """Flux [nanomaggies] for N = 0 of one line in one band, from the arrays of the files."""
    folder = root / "emline_speculator_models"
    state, basis = (
        read_torch_archive(folder / "speculator-emlinesabsmags"),
        read_numpy(folder / "PCABasis.npz"),
    )
    arrays = [np.asarray(value, np.float64) for value in state.values()]
    n = sum(array.ndim == 2 for array in arrays)
    x = theta.astype(np.float64)
    x[8] = np.sqrt(x[8])
    h = (x - basis["parameters_shift"]) / basis["parameters_scale"]
    for layer in range(n):
        h = h @ arrays[layer] + arrays[n + layer]
        if layer < n - 1:
            h = activated(h, arrays[2 * n + layer], arrays[3 * n - 1 + layer])
    components = h * basis["pca_scale"] + basis["pca_shift"]
    spectrum = (
        components @ basis["pca_transform_matrix"] * basis["log_spectrum_scale"] + basis["log_spectrum_shift"]
    )
    strength = 10 ** (-0.4 * spectrum[np.argmin(np.abs(read_numpy(folder / "elams.npy") - wave))])
    amplitude, width, power, centre = np.split(
        read_numpy(root / "emline_bandpass_models" / f"line_gengmmcoeffs_{band}.npy"), 4
    )
    observed = wave * (1 + theta[-1])
    passed = (amplitude * gennorm.pdf(observed, power, centre, width)).sum()
    return 1e9 * 3.2143882024295685e-07 * observed * strength * passed


def surviving_fraction(root, theta):
    shift, scale = read_pickle(root / "stellar_mass_parameter_shift-scale.pkl")
    h = (theta.astype(np.float64) - shift) / scale
    for layer in list(read_torch_archive(root / "stellar_mass_emulator.pt").state["_modules"].values())[::2]:
        h = np.tanh(layer.get("weight").astype(np.float64) @ h + layer.get("bias"))
    return h[0]


def test_fluxes_are_those_of_the_files(release, bundle, theta):
    emulator = bundle.emulator()
    assert emulator.bands == BANDS and emulator.redshift_range == (0.0, 6.0)
    fluxes = np.asarray(jax.jit(jax.vmap(lambda t: emulator(t)))(jnp.asarray(theta)))
    lines = np.asarray(jax.jit(jax.vmap(lambda t: emulator.lines(emulator.space, t)))(jnp.asarray(theta)))
    shares = []
    for row, values in enumerate(theta):
        for column, band in enumerate(BANDS):
            path = release / "photulator_models" / f"model_3x8_small20_{band}_cpu.pt"
            base = photulator_flux(path, values)
            added = sum(line.offset * line_flux(release, band, values, line.wave) for line in LINE_OFFSETS)
            assert lines[row, column] == pytest.approx(added, rel=2e-4, abs=1e-6 * base)
            expected = (base + added) * 10 ** (-0.4 * float(values[0]))
            assert fluxes[row, column] == pytest.approx(expected, rel=2e-4)
            shares.append(abs(added) / base)
    assert np.mean(np.array(shares) > 1e-4) > 0.3, "hardly any line fell into a band"


def test_surviving_mass_is_that_of_the_files(release, bundle, theta):
    emulator = bundle.emulator()
    derived = np.asarray(jax.jit(jax.vmap(lambda t: emulator.derived(t)))(jnp.asarray(theta)))
    expected = [np.clip(surviving_fraction(release, values), 1e-3, 1.0) for values in theta]
    np.testing.assert_allclose(derived[:, 1] - derived[:, 0], np.log10(expected), atol=1e-5)


def test_the_manifest_tells_how_to_use_it(release, bundle, imported):
    facts = bundle.manifest
    known = [band for band in BANDS if band in COSMOS_BANDS]
    assert facts["likelihood"]["zero_points"] == {band: COSMOS_BANDS[band].zero_point for band in known}
    assert facts["likelihood"]["error_floor"] == {band: COSMOS_BANDS[band].error_floor for band in known}
    settings = yaml.safe_load((imported.bundles[0] / "likelihood.yaml").read_text())
    assert settings["model"]["likelihood"] == facts["likelihood"]
    assert LikelihoodConfig(**settings["model"]["likelihood"]).nu == 2.0
    assert list(facts["line_offsets"]) == [line.name for line in LINE_OFFSETS] == facts["lines"]
    assert set(facts["filters"]) == set(BANDS) and all(f["pivot"] > 3000 for f in facts["filters"].values())
    assert len(facts["synthesis"]["files"]) == 3 + 3 + 3 + 3
    assert all(len(digest) == 64 for digest in facts["synthesis"]["files"].values())
    assert bundle.prior().space.names == POP_COSMOS.names


def test_the_noise_model_becomes_a_bundle(imported):
    assert [path.name for path in imported.bundles] == ["pop_cosmos", "pop_cosmos_uncertainty"]
    assert imported.left_out == ()
    model = load_uncertainty(imported.bundles[1])
    assert model.bands == BANDS
    errors = model.sample(jax.random.PRNGKey(0), jnp.asarray([1.0, 2.0, 3.0]))
    assert errors.shape == (3,) and (np.asarray(errors) > 0).all()


def test_population_models_become_bundles(release, tmp_path):
    """Also several, and a noise model of the earlier form, which is named and left out."""
    root = shutil.copytree(release, tmp_path / "release")
    shutil.rmtree(root / "photulator_models")
    rng = np.random.default_rng(3)
    for band in COSMOS_BANDS:
        write_archive(
            root / "photulator_models" / f"model_1x4_k_{band}_gpu.pt", make_photulator(rng, band, (4,))
        )
        shutil.copy(
            release / "emline_bandpass_models" / "line_gengmmcoeffs_hsc_i.npy",
            root / "emline_bandpass_models" / f"line_gengmmcoeffs_{band}.npy",
        )
    frequencies = rng.normal(size=2).astype(np.float32)
    model = make_model(make_mlp(make_layers(rng, 16, 0, (16,), 2), frequencies, 16, 0), "VPSDE", True)
    write_archive(root / "catalogueModelA24.pt", model)
    write_archive(root / "catalogueModelT25.pt", make_generator(model))
    write_archive(root / "noiseModel.pt", Module("pop_cosmos.catalogue.NoiseModelMDN"))
    write_archive(root / "noiseModelT25.pt", make_noise(rng, 26)[0])
    imported = import_release(root, tmp_path / "out")
    names = ["", "_uncertainty_T25", "_population_A24", "_population_T25", "_calibrated_T25"]
    assert [path.name for path in imported.bundles] == [f"pop_cosmos{name}" for name in names]
    assert len(imported.left_out) == 1 and imported.left_out[0].startswith("noiseModel.pt: a mixture")
    prior = load_population(tmp_path / "out" / "pop_cosmos_population_T25")
    assert prior.space.parameters[-1].upper == 4.5
    assert load_bundle(tmp_path / "out" / "pop_cosmos").prior(
        str(tmp_path / "out" / "pop_cosmos_population_T25")
    ).space == prior.space  # fmt: skip
    calibrated = load_bundle(tmp_path / "out" / "pop_cosmos_calibrated_T25")
    facts = calibrated.manifest
    assert facts["likelihood"]["zero_points"]["u_megaprime_sagem"] == pytest.approx(0.9)
    assert facts["line_offsets"]["H-alpha 6563"] == pytest.approx(-0.34093344 * 1.1, rel=1e-5)
    _fits_together(calibrated, prior)


def _fits_together(bundle, prior):
    """A galaxy of the population, observed in all bands, has a finite posterior density."""
    settings = bundle.manifest["likelihood"]
    zero_points, floors = (
        [settings[name][band] for band in bundle.bands] for name in ("zero_points", "error_floor")
    )
    model = GalaxyModel(bundle.emulator(), Likelihood(zero_points, floors, settings["family"]), prior)
    errors, state = (
        jnp.full(len(bundle.bands), 0.1),
        jnp.full(len(bundle.bands), BandState.OBSERVED, jnp.int8),
    )

    def one(key):
        _, photometry = model.simulate(key, errors, state)
        return model.log_target(prior.sample_base(key), photometry)

    assert np.isfinite(np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.PRNGKey(0), 8)))).all()


def test_nothing_is_written_where_a_file_is_bad(release, tmp_path):
    """Whatever the file: hostile, truncated, missing, or of other shapes."""

    def attempt(name, change):
        root = shutil.copytree(release, tmp_path / name / "trained_models")
        complaint = change(root)
        with pytest.raises(BundleError, match=complaint):
            import_release(tmp_path / name, tmp_path / name / "out")
        assert not (tmp_path / name / "out").exists()

    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            import os

            return (os.system, (f"touch {trace}",))

    band = "model_3x8_small20_hsc_i_cpu.pt"
    hostile = {
        "band": f"photulator_models/{band}", "lines": "emline_speculator_models/speculator-emlinesabsmags",
        "mass": "stellar_mass_emulator.pt", "noise": "noiseModel.pt", "population": "catalogueModelT25.pt",
    }  # fmt: skip
    for name, file in hostile.items():
        attempt(
            name, lambda root, file=file: write_raw(root / file, pickle.dumps(Evil())) and "refuses posix"
        )
    shift = "stellar_mass_parameter_shift-scale.pkl"
    attempt("shift", lambda root: (root / shift).write_bytes(pickle.dumps(Evil())) and "refuses posix")
    assert not trace.exists()

    def truncate(root):
        path = root / "photulator_models" / band
        path.write_bytes(path.read_bytes()[:-100])
        return "undamaged PyTorch archive"

    def shapes(root):
        rng = np.random.default_rng(0)
        write_archive(root / "photulator_models" / band, make_photulator(rng, "hsc_i", (8, 7, 8)))
        return "networks of one shape"

    def depths(root):
        rng = np.random.default_rng(0)
        write_archive(root / "photulator_models" / band, make_photulator(rng, "hsc_i", (8, 8)))
        return "networks of one depth"

    def inputs(root):
        photulator = make_photulator(np.random.default_rng(0), "hsc_i")
        photulator.state["parameter_names"][7] = "dust2"
        write_archive(root / "photulator_models" / band, photulator)
        return "expected the inputs log10Z"

    def bandpass(root):
        (root / "emline_bandpass_models" / "line_gengmmcoeffs_hsc_i.npy").unlink()
        return "line_gengmmcoeffs_hsc_i.npy: expected an undamaged NumPy file; got no file"

    def wavelengths(root):
        np.save(root / "emline_speculator_models" / "elams.npy", np.linspace(1e3, 9e3, 30))
        return r"a line within 1.0 A of \[N II\] 6549"

    for change in (truncate, shapes, depths, inputs, bandpass, wavelengths):
        attempt(change.__name__, change)
    with pytest.raises(BundleError, match="a folder photulator_models"):
        import_release(tmp_path / "nowhere", tmp_path / "out")


def test_endings_of_names_keep_models_apart(tmp_path):
    for name in (
        "aModel.pt",
        "aModelPublic.pt",
        "aModel_v2.pt",
        "bModelCPU.pt",
        "bModelGPU.pt",
        "cModelT25.pt",
    ):
        (tmp_path / name).touch()
    assert [(tag, p.name) for tag, p in models_of(tmp_path, "aModel").items()] == [
        ("", "aModel.pt"), ("_Public", "aModelPublic.pt"), ("_v2", "aModel_v2.pt"),
    ]  # fmt: skip
    assert {tag: p.name for tag, p in models_of(tmp_path, "bModel").items()} == {"": "bModelCPU.pt"}
    assert {tag: p.name for tag, p in models_of(tmp_path, "cModel").items()} == {"": "cModelT25.pt"}


def test_the_verb_names_what_it_made(release, tmp_path):
    arguments = ["bundle", "import", "pop-cosmos", str(release), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    made = [line.split()[1] for line in shown.output.splitlines() if line.startswith("bundle ")]
    assert made == [str(tmp_path / "out" / name) for name in ("pop_cosmos", "pop_cosmos_uncertainty")]
    missing = CliRunner().invoke(main, [*arguments[:3], str(tmp_path), *arguments[4:]])
    assert missing.exit_code == 2 and "photulator_models" in missing.output
