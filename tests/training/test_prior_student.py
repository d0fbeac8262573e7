"""Students of teachers whose density is known: accuracy as stored, refusals, bundles, resume."""

import dataclasses
import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats

from popcosmos_hpc.cli import main
from popcosmos_hpc.errors import BundleError, ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.student_bundle import load_flow, load_map
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.model.students import FlowShape, FlowStudent, MapStudent, initial_flow
from popcosmos_hpc.parameters import Parameter, ParameterSpace
from popcosmos_hpc.training.prior_student import train_flow, train_map, train_student_bundle
from popcosmos_hpc.training.student_accuracy import (
    draw_pairs,
    efficiency,
    efficiency_of_target,
    log_ratio,
    measure_flow,
)
from popcosmos_hpc.training.student_recipe import FlowRecipe, MapRecipe, load_student_recipe
from tests.model.test_diffusion import SIGMA, exact_log_prob, mixture

PLANE = ParameterSpace(tuple(Parameter(name, "", "free", "identity") for name in "ab"))
SPACE = ParameterSpace((*PLANE.parameters, Parameter("c", "", "bounded", "probit", 0.0, 2.0)))
SHIFT, MIXING = np.array([3.0, -1.0]), np.array([[2.0, 0.0], [0.5, 0.8]])
FLOW = FlowRecipe(
    name="flow", n_layers=4, width=32, depth=1, n_knots=6, n_rounds=8, n_draws=20_000, batch_size=256,
    learning_rate=5e-3, average=0.99, n_test=1000,
)  # fmt: skip
MAP = MapRecipe(
    name="map", width=48, depth=1, n_rounds=4, n_draws=10_000, batch_size=256, learning_rate=5e-3,
    average=0.98, n_test=4000,
)  # fmt: skip


def two_humps() -> DiffusionPrior:
    """A teacher whose score, and so its density, is known exactly."""
    return DiffusionPrior(
        mixture("vp", n_steps=20), jnp.asarray(SHIFT, jnp.float32), jnp.asarray(MIXING, jnp.float32), PLANE
    )


def exact(phi: np.ndarray) -> np.ndarray:
    """Ln density of `two_humps`."""
    x = np.linalg.solve(MIXING, (phi.astype(np.float64) - SHIFT).T).T
    return exact_log_prob(mixture("vp"), x) - np.linalg.slogdet(MIXING)[1]


def crooked(seed: int = 4) -> DiffusionPrior:
    """A teacher of three parameters with random weights: any velocity is a population."""
    network = initial_score_network(jax.random.PRNGKey(seed), 3, width=16, depth=1)
    network = eqx.tree_at(lambda n: n.weights[-1], network, 40 * network.weights[-1])
    mixing = jnp.asarray([[1.0, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.2, 0.1, 0.3]])
    shift = jnp.asarray([1.0, -2.0, 0.5])
    return DiffusionPrior(Diffusion(network, NoiseSchedule("vp"), "velocity", 12), shift, mixing, SPACE)


def write_teacher(path, seed: int = 4):
    facts, arrays = prior_to_bundle(crooked(seed))
    return save_bundle(path, {"name": path.name, **facts, "citations": ["a survey"]}, arrays)


def mapped(function, values):
    return np.asarray(jax.jit(jax.vmap(function))(jnp.asarray(values)))


@pytest.fixture(scope="module", autouse=True)
def _short_classifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("popcosmos_hpc.training.student_accuracy._CLASSIFIED", 3000)
        yield


@pytest.fixture(scope="module")
def flow() -> FlowStudent:
    return train_flow(two_humps(), FLOW)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "crooked")


@pytest.fixture(scope="module")
def map_bundle(teacher, tmp_path_factory):
    return train_student_bundle(teacher, "map", MAP, tmp_path_factory.mktemp("map") / "student")[0]


@pytest.fixture(scope="module")
def flow_bundle(teacher, tmp_path_factory):
    short = FLOW.model_copy(update={"n_rounds": 4, "n_layers": 3, "average": 0.95})
    return train_student_bundle(teacher, "flow", short, tmp_path_factory.mktemp("flow") / "student")[0]


def test_the_flows_density_is_the_exact_one(flow):
    rng = np.random.default_rng(1)
    x = rng.normal(0, SIGMA, (4000, 2)) + np.where(rng.random((4000, 1)) < 0.5, 1, -1) * [0.8, -0.5]
    phi = (SHIFT + x @ MIXING.T).astype(np.float32)
    difference = exact(phi) - mapped(flow.log_prob, phi)
    assert difference.mean() < 0.02  # the divergence; its standard error is 0.1 / sqrt(4000) = 0.002
    assert difference.std() < 0.15


def test_the_flows_density_is_normalised(flow):
    """Over a box that holds all but 1e-5 of the mass; the cells are 1/25 of a hump."""
    x, cell = np.meshgrid(*[np.linspace(-3.2, 3.2, 321)] * 2, indexing="ij"), 0.02**2
    phi = SHIFT + np.stack([axis.ravel() for axis in x], axis=1) @ MIXING.T
    density = np.exp(mapped(flow.log_prob, phi.astype(np.float32)).astype(np.float64))
    assert density.sum() * cell * np.linalg.det(MIXING) == pytest.approx(1.0, abs=3e-3)


def test_the_flow_draws_from_its_own_density(flow):
    """Boxes cut by the medians of the draws: their mass under the density against the share of draws."""
    count = 40_000
    phi = mapped(flow.sample, jax.random.split(jax.random.PRNGKey(2), count))
    assert np.isfinite(phi).all()
    x, cell = np.meshgrid(*[np.linspace(-3.2, 3.2, 321)] * 2, indexing="ij"), 0.02**2
    points = np.stack([axis.ravel() for axis in x], axis=1)
    density = np.exp(mapped(flow.log_prob, (SHIFT + points @ MIXING.T).astype(np.float32)))
    mass = density * cell * np.linalg.det(MIXING)
    drawn = np.linalg.solve(MIXING, (phi - SHIFT).T).T
    for axis, edge in ((0, 0.01), (0, 0.81), (1, -0.49), (1, 0.51)):  # between the nodes of the grid
        share = mass[points[:, axis] < edge].sum()
        # Four standard errors of a share, and a cell's half-width times the largest density.
        assert np.mean(drawn[:, axis] < edge) == pytest.approx(share, abs=4 * 0.5 / np.sqrt(count) + 0.005)


def test_a_flow_student_is_a_prior(flow):
    def both(u):
        expected = flow.base_log_prob(u) - jnp.linalg.slogdet(jax.jacfwd(flow.transport)(u))[1]
        return flow.log_prob(flow.transport(u)), expected

    found, expected = jax.jit(jax.vmap(both))(np.random.default_rng(3).standard_normal((200, 2), np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_measures_of_the_flow_are_those_of_the_exact_density(flow):
    """The teacher's own solver is left out: the same numbers from the formula."""
    found = {
        measure.name: measure for measure in measure_flow(flow, two_humps(), 1500, jax.random.PRNGKey(7))
    }
    assert found["efficiency"].value > 0.95
    phi = draw_pairs(flow, 30_000, jax.random.PRNGKey(8))[1]
    ratio = exact(phi) - mapped(flow.log_prob, phi)
    for name, value, error in (
        ("efficiency", *efficiency(ratio)[1:]),
        ("kl_flow_to_teacher", -ratio.mean(), ratio.std() / np.sqrt(len(ratio))),
        ("mean_weight", 1.0, 0.0),
    ):
        allowed = 4 * np.hypot(found[name].error, error) + 0.005  # 0.005: the teacher's solver of 40 steps
        assert found[name].value == pytest.approx(value, abs=allowed), name
    agree = found["efficiency"].value - found["efficiency_on_teacher_draws"].value
    assert (
        abs(agree)
        < 4 * np.hypot(found["efficiency"].error, found["efficiency_on_teacher_draws"].error) + 0.01
    )


def test_efficiencies_of_known_weights():
    """N(0, 1) drawn for the target N(0, s): E w^2 = 1 / (s sqrt(2 - s^2)) for s < sqrt(2)."""
    s, rng = 0.8, np.random.default_rng(5)
    ratio = lambda x: stats.norm.logpdf(x, 0, s) - stats.norm.logpdf(x)  # noqa: E731
    truth = s * np.sqrt(2 - s**2)
    for found in (
        efficiency(ratio(rng.standard_normal(20_000)) + 3.0),  # whatever the normalisation
        efficiency_of_target(ratio(s * rng.standard_normal(20_000))),
    ):
        assert 0 < found.error < 0.01
        assert found.value == pytest.approx(truth, abs=4 * found.error)


def test_the_maps_stored_error_is_its_error(map_bundle, teacher):
    student = load_map(map_bundle, "preconditioner", teacher)
    stored = {measure.name: measure for measure in student.accuracy}
    u = np.random.default_rng(6).standard_normal((4000, 3)).astype(np.float32)
    truth = mapped(crooked().transport, u).astype(np.float64)
    difference = mapped(student.transport, u) - truth
    square = np.einsum("ni,ij,nj->n", difference, np.linalg.inv(np.cov(truth.T)), difference) / 3
    value = np.sqrt(square.mean())
    error = square.std() / np.sqrt(len(square)) / (2 * value)
    assert stored["rms"].value == pytest.approx(value, abs=4 * np.hypot(stored["rms"].error, error))
    assert 0 < stored["rms"].error < 0.2 * value
    per_parameter = np.sqrt(np.mean(difference**2, axis=0)) / truth.std(axis=0)
    assert stored["rms_worst_parameter"].value == pytest.approx(per_parameter.max(), rel=0.2)


def test_the_map_learns_more_than_a_straight_line(map_bundle):
    student = load_map(map_bundle, "preconditioner")
    straight = eqx.tree_at(
        lambda s: s.network.layers[-1], student, jax.tree.map(jnp.zeros_like, student.network.layers[-1])
    )
    u = np.random.default_rng(7).standard_normal((2000, 3)).astype(np.float32)
    truth = mapped(crooked().transport, u)
    rms = [np.sqrt(np.mean((mapped(one.transport, u) - truth) ** 2)) for one in (student, straight)]
    assert rms[0] < 0.3 * rms[1]


def test_a_map_has_no_density(map_bundle):
    with pytest.raises(ConfigurationError, match="Use a flow student, or the teacher"):
        load_map(map_bundle, "preconditioner").log_prob(jnp.zeros(3))


def test_a_flow_comes_back_from_its_bundle(flow_bundle, teacher):
    loaded = load_flow(flow_bundle, "proposal", teacher)
    assert loaded.space == SPACE
    manifest = load_bundle(flow_bundle).manifest
    assert manifest["citations"] == ["a survey"] and manifest["teacher"] == "crooked"
    assert (
        manifest["accuracy"]["efficiency"]["value"]
        == {m.name: m.value for m in loaded.accuracy}["efficiency"]
    )
    # The efficiency that was stored is that of the flow that was loaded.
    ratio = log_ratio(loaded, crooked(), draw_pairs(loaded, 1000, jax.random.PRNGKey(12))[1])
    again = efficiency(ratio)
    stored = {measure.name: measure for measure in loaded.accuracy}["efficiency"]
    assert again.value == pytest.approx(stored.value, abs=4 * np.hypot(again.error, stored.error))


def spoiled(path, target, change):
    """A copy of a bundle with a changed manifest or changed arrays, and a matching hash of the weights."""
    bundle = load_bundle(path)
    manifest, arrays = json.loads(json.dumps(bundle.manifest)), dict(bundle.arrays)
    change(manifest, arrays)
    return save_bundle(target, {k: v for k, v in manifest.items() if k != "weights_sha256"}, arrays)


def measured(**values):
    return lambda manifest, _: manifest["accuracy"].update(
        {name: {"value": value, "error": 0.001} for name, value in values.items()}
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"efficiency": 0.8}, r"efficiency >= 0.85.*got a measured efficiency of 0.8 \+- 0.001.*proposal"),
        ({"kl_teacher_to_flow": 0.06}, "kl_teacher_to_flow of 0.06"),
        ({"kl_flow_to_teacher": 0.06, "efficiency": 0.3}, "efficiency of 0.3.*kl_flow_to_teacher of 0.06"),
    ],
)
def test_a_flow_is_refused_beyond_its_accuracy(flow_bundle, tmp_path, values, message):
    good = {"efficiency": 0.9, "kl_teacher_to_flow": 0.04, "kl_flow_to_teacher": 0.04}
    fine = spoiled(flow_bundle, tmp_path / "fine", measured(**good))
    assert load_flow(fine, "density").uses() == ("density", "proposal")
    poor = spoiled(flow_bundle, tmp_path / "poor", measured(**(good | values)))
    with pytest.raises(BundleError, match=message):
        load_flow(poor, "density")


@pytest.mark.parametrize(("rms", "uses"), [(0.009, 3), (0.015, 2), (0.05, 1), (0.2, 0)])
def test_a_map_is_refused_beyond_its_accuracy(map_bundle, tmp_path, rms, uses):
    path = spoiled(map_bundle, tmp_path / "student", measured(rms=rms))
    ordered = ("prior", "pool", "preconditioner")
    for use in ordered[3 - uses :]:
        assert use in load_map(path, use).uses()
    for use in ordered[: 3 - uses]:
        with pytest.raises(BundleError, match=f"rms <= .* for the use {use}; got a measured rms of {rms}"):
            load_map(path, use)


def test_unmeasured_students_and_unknown_uses_are_refused(map_bundle):
    student = load_map(map_bundle, "preconditioner")
    assert isinstance(student, MapStudent)
    with pytest.raises(BundleError, match="no measured rms"):
        dataclasses.replace(student, accuracy=()).require("pool")
    with pytest.raises(BundleError, match="rms of nan"):
        dataclasses.replace(student, accuracy=(Measure("rms", float("nan"), 0.0),)).require("pool")
    with pytest.raises(ConfigurationError, match=r"prior, pool, preconditioner.*'density'"):
        student.require("density")


def test_students_of_other_teachers_and_other_kinds_are_refused(map_bundle, flow_bundle, tmp_path):
    other = write_teacher(tmp_path / "other", seed=5)
    for load, path, use in ((load_map, map_bundle, "preconditioner"), (load_flow, flow_bundle, "proposal")):
        with pytest.raises(BundleError, match="Train a student of this population"):
            load(path, use, other)
    with pytest.raises(BundleError, match="kind flow"):
        load_flow(map_bundle, "density")
    with pytest.raises(BundleError, match="kind population"):
        train_student_bundle(map_bundle, "map", MAP, tmp_path / "grandchild")
    with pytest.raises(ConfigurationError, match="recipe of a flow student"):
        train_student_bundle(other, "flow", MAP, tmp_path / "mixed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, a: a.pop("student.bias.0"), "student.bias.0"),
        (lambda m, a: a.update({"student.shift": np.zeros(2)}), r"student.shift of shape \(3,\)"),
        (lambda m, a: a.update({"flow.permutation": np.zeros((3, 3), int)}), "permutations of 3"),
        (lambda m, a: a.update({"marginals.slopes": -a["marginals.slopes"]}), "rising knots"),
        (lambda m, a: a.pop("marginals.scores"), "marginals.scores of shape"),
        (lambda m, a: m["flow"].pop("n_knots"), "entry flow with"),
        (lambda m, a: m["flow"].update(width="wide"), "numbers for width"),
        (lambda m, a: m["flow"].update(width=31), r"student.weight.0 of shape \(3, 31, 1\)"),
        (lambda m, a: m.update(accuracy={"efficiency": 0.99}), "a value and its error"),
    ],
)
def test_damaged_flows_are_refused(flow_bundle, tmp_path, change, message):
    with pytest.raises(BundleError, match=message):
        load_flow(spoiled(flow_bundle, tmp_path / "damaged", change), "proposal")


def test_a_changed_file_is_refused(map_bundle, tmp_path):
    copy = shutil.copytree(map_bundle, tmp_path / "copy")
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="changed or damaged"):
        load_map(copy, "preconditioner")


@pytest.mark.parametrize("kind", ["flow", "map"])
def test_training_resumes_to_the_same_weights(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("popcosmos_hpc.training.fit.SAVE_EVERY", 0.0)
    short = {"n_rounds": 3, "n_draws": 1000, "width": 8}
    recipe = (FLOW if kind == "flow" else MAP).model_copy(update=short)
    learn = train_flow if kind == "flow" else train_map
    whole, state = learn(crooked(), recipe), tmp_path / "state.eqx"

    class Stop(Exception):
        pass

    def stopping(prior, count, key, calls=[]):  # noqa: B006
        calls.append(key)
        if len(calls) == 4:  # whitening, then the third round
            raise Stop
        return draw_pairs(prior, count, key)

    with monkeypatch.context() as patch:
        patch.setattr("popcosmos_hpc.training.student_draws.draw_pairs", stopping)
        with pytest.raises(Stop):
            learn(crooked(), recipe, state)
    resumed = learn(crooked(), recipe, state)
    for one, other in zip(
        *(jax.tree.leaves(eqx.filter(s, eqx.is_array)) for s in (whole, resumed)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_bad_teachers_and_recipes_are_refused(tmp_path):
    broken = eqx.tree_at(lambda p: p.shift, crooked(), jnp.full(3, jnp.nan))
    with pytest.raises(TrainingError, match="finite draws of the teacher"):
        train_flow(broken, FLOW)
    with pytest.raises(ConfigurationError, match="two dimensions"):
        initial_flow(jax.random.PRNGKey(0), 1, FlowShape())
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nn_layer: 3\n")
    with pytest.raises(ConfigurationError, match="n_layer"):
        load_student_recipe(bad, "flow")
    with pytest.raises(ConfigurationError, match="no file"):
        load_student_recipe(tmp_path / "none.yaml", "map")


def test_the_command_says_what_a_student_is_good_for(teacher, tmp_path):
    recipe, out = tmp_path / "map.yaml", tmp_path / "student"
    recipe.write_text(yaml.safe_dump(MAP.model_dump(mode="json") | {"n_rounds": 1, "n_draws": 1000}))
    words = ["train", "student", str(teacher), "--out", str(out), "--config", str(recipe), "--kind"]
    shown = CliRunner().invoke(main, [*words, "map"])
    assert shown.exit_code == 0, shown.output
    assert "accuracy   rms " in shown.output and "good for   " in shown.output
    assert load_bundle(out, "map").manifest["name"] == "map"
    assert len(list((tmp_path / "student.checkpoints").glob("map-*.eqx"))) == 1
    recipe.write_text("name: flow\nlayers: 8\n")
    refused = CliRunner().invoke(main, [*words, "flow"])
    assert refused.exit_code == 2 and "recipe of a flow student" in refused.output


@pytest.mark.parametrize("name", ["reference_flow", "reference_map", "reference_amplitude"])
def test_shipped_recipes_are_recipes(repository, name):
    kind = name.split("_")[1]
    assert load_student_recipe(repository / "configs" / "training" / f"{name}.yaml", kind).name == name
