"""Students of a diffusion prior: draws of the teacher to a flow, or to a one-step map.

The flow is trained by maximum likelihood on the normal scores of whitened draws, and the map by regression
on the teacher's transport, point by point. Draws are fresh in each round: the teacher gives as many as are
asked for, so that none is learned by heart.
"""

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax import Array
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import popcosmos_hpc
from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.diffusion_bundle import prior_from_bundle
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.student_bundle import student_to_bundle
from popcosmos_hpc.model.students import (
    FlowShape,
    FlowStudent,
    MapStudent,
    Measure,
    initial_flow,
    initial_network,
)
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.prior import Whitening, whiten
from popcosmos_hpc.training.student_accuracy import draw_pairs, measure_flow, measure_map, white

logger = logging.getLogger(__name__)

Kind = Literal["flow", "map"]
_INITIAL, _ROUNDS, _WHITENING, _TEST = range(4)  # independent streams of random numbers
_WHITENED_BY = 100_000


class StudentRecipe(BaseModel):
    """How a student is trained, whatever its kind.

    Attributes:
        name: of the bundle.
        description: for people.
        width: units per hidden layer.
        n_rounds: rounds of fresh draws.
        n_draws: draws of the teacher per round.
        batch_size: draws per gradient step.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        n_test: draws by which the student is measured.
        seed: of weights and draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    width: int = Field(128, ge=1)
    n_rounds: int = Field(60, ge=1)
    n_draws: int = Field(100_000, ge=1000)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.999, ge=0, lt=1)
    n_test: int = Field(4096, ge=1000)
    seed: int = 1

    def pace(self) -> Schedule:
        """For the training loop."""
        size = min(self.batch_size, self.n_draws)
        return Schedule(self.n_rounds, size, self.learning_rate, self.seed, self.average, clip=1.0)


class FlowRecipe(StudentRecipe):
    """How a flow is trained.

    Attributes:
        n_layers: coupling layers.
        depth: hidden layers of each one's network.
        n_knots: inner knots of each spline.
        interval: where the splines act, in standard deviations.
    """

    n_layers: int = Field(8, ge=1)
    depth: int = Field(2, ge=1)
    n_knots: int = Field(8, ge=1)
    interval: float = Field(6.0, gt=0)

    def shape(self) -> FlowShape:
        """Of the flow."""
        return FlowShape(self.n_layers, self.width, self.depth, self.n_knots, self.interval)


class MapRecipe(StudentRecipe):
    """How a one-step map is trained.

    Attributes:
        depth: hidden layers.
    """

    width: int = Field(256, ge=1)
    depth: int = Field(4, ge=1)
    n_test: int = Field(20_000, ge=1000)


RECIPES: dict[str, type[FlowRecipe] | type[MapRecipe]] = {"flow": FlowRecipe, "map": MapRecipe}


def load_student_recipe(path: Path | str, kind: Kind) -> FlowRecipe | MapRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError("a training configuration", f"no file {path}", "train student")
    try:
        return RECIPES[kind](**yaml.safe_load(path.read_text()))
    except (ValidationError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"a recipe of a {kind} student", str(error), str(path)) from error


def train_flow(teacher: DiffusionPrior, recipe: FlowRecipe, checkpoint: Path | None = None) -> FlowStudent:
    """Train a flow on draws of its teacher, by maximum likelihood.

    Args:
        teacher: any diffusion prior of two parameters or more.
        recipe: size and pace.
        checkpoint: file for the state of training; a killed training goes on from it.

    Returns:
        The flow, not measured yet.

    Raises:
        TrainingError: a draw of the teacher or the loss is not finite.
        ConfigurationError: the teacher has one parameter.
    """
    phi = _draws(teacher, recipe, _WHITENING, 0, _WHITENED_BY)[1]
    whitening = whiten(phi)
    marginals = fit_marginals(white(phi, whitening))
    scores = eqx.filter_jit(lambda rows: jax.vmap(marginals.forward)(rows)[0])

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = _draws(teacher, recipe, _ROUNDS, index, recipe.n_draws)[1]
        y = np.asarray(scores(white(drawn, whitening)))
        return y, y[:, :0]

    flow = initial_flow(_key(recipe, _INITIAL), teacher.space.size, recipe.shape())
    flow = train(flow, negative_log_prob, examples, recipe.pace(), checkpoint, recipe.name)
    shift, mixing = _arrays(whitening)
    return FlowStudent(
        shift=shift,
        mixing=mixing,
        space=teacher.space,
        accuracy=(),
        marginals=marginals,
        flow=flow,
        shape=recipe.shape(),
    )


def negative_log_prob(flow: Any, x: Array, _: Array) -> Array:
    """Loss of one draw, in normal scores."""
    return -flow.log_prob(x)


def train_map(teacher: DiffusionPrior, recipe: MapRecipe, checkpoint: Path | None = None) -> MapStudent:
    """Train a one-step map on its teacher's transport, by least squares.

    The linear part is solved for, so that the network learns only what departs from it. Arguments and
    errors as for `train_flow`.
    """
    u, phi = _draws(teacher, recipe, _WHITENING, 0, _WHITENED_BY)
    linear = best_linear_map(u, phi)

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        base, target = _draws(teacher, recipe, _ROUNDS, index, recipe.n_draws)
        return base, white(target, linear) - base

    network = initial_network(_key(recipe, _INITIAL), teacher.space.size, recipe.width, recipe.depth)
    network = train(network, squared_error, examples, recipe.pace(), checkpoint, recipe.name)
    shift, mixing = _arrays(linear)
    return MapStudent(shift=shift, mixing=mixing, space=teacher.space, accuracy=(), network=network)


def squared_error(network: Callable[[Array], Array], u: Array, residual: Array) -> Array:
    """Loss of one base point, in whitened space."""
    return jnp.mean((network(u) - residual) ** 2)


def best_linear_map(u: np.ndarray, phi: np.ndarray) -> Whitening:
    """Shift and mixing of phi = shift + mixing u with the least squared error; draws (draw, param)."""
    design = np.concatenate([np.ones((len(u), 1)), u], axis=1)
    solution = np.linalg.lstsq(design, phi.astype(np.float64), rcond=None)[0]
    return Whitening(solution[0], solution[1:].T)


def train_student_bundle(
    teacher: str | Path,
    kind: Kind,
    recipe: FlowRecipe | MapRecipe,
    out: Path,
    checkpoint_dir: Path | None = None,
) -> tuple[Path, FlowStudent | MapStudent]:
    """Train a student, measure it against its teacher, and write its bundle.

    Args:
        teacher: name or folder of a population bundle.
        kind: of the student.
        recipe: of that kind.
        out: folder of the bundle.
        checkpoint_dir: where the state of training is kept.

    Returns:
        The folder, and the student with its accuracy.

    Raises:
        BundleError: no such teacher.
        ConfigurationError: the recipe is one of another kind.
        TrainingError: as `train_flow`.
    """
    if not isinstance(recipe, RECIPES[kind]):
        raise ConfigurationError(f"a recipe of a {kind} student", type(recipe).__name__, "train student")
    source = load_bundle(teacher, "population")
    prior = prior_from_bundle(source.manifest, source.arrays, str(source.path))
    settings = json.dumps([kind, recipe.model_dump(mode="json"), source.sha256], sort_keys=True)
    state = f"{recipe.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.eqx"
    student = _trained(prior, recipe, checkpoint_dir / state if checkpoint_dir else None)
    facts, arrays = student_to_bundle(student)
    manifest = {
        "name": recipe.name,
        "description": recipe.description,
        **facts,
        "teacher": source.manifest["name"],
        "teacher_sha256": source.sha256,
        "recipe": recipe.model_dump(mode="json"),
        "citations": source.manifest.get("citations", []),
        "software": {
            "popcosmos_hpc": popcosmos_hpc.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }
    save_bundle(out, manifest, arrays)
    return out, student


def _trained(
    teacher: DiffusionPrior, recipe: FlowRecipe | MapRecipe, checkpoint: Path | None
) -> FlowStudent | MapStudent:
    """Trained and measured."""
    key = _key(recipe, _TEST)
    if isinstance(recipe, FlowRecipe):
        flow = train_flow(teacher, recipe, checkpoint)
        return _with_accuracy(flow, measure_flow(flow, teacher, recipe.n_test, key))
    one_step = train_map(teacher, recipe, checkpoint)
    return _with_accuracy(one_step, measure_map(one_step, teacher, recipe.n_test, key))


def _with_accuracy(student: Any, measures: tuple[Measure, ...]) -> Any:
    for name, value, error in measures:
        logger.info("%s %.4f +- %.4f", name, value, error)
    rounded = tuple(Measure(m.name, float(f"{m.value:.5g}"), float(f"{m.error:.2g}")) for m in measures)
    return dataclasses.replace(student, accuracy=rounded)


def _key(recipe: StudentRecipe, stream: int, index: int = 0) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(recipe.seed), stream), index)


def _draws(
    teacher: DiffusionPrior, recipe: StudentRecipe, stream: int, index: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Base points and phi (count, param) of the teacher."""
    u, phi = draw_pairs(teacher, count, _key(recipe, stream, index))
    if not np.isfinite(phi).all():
        raise TrainingError(
            "finite draws of the teacher", f"{np.sum(~np.isfinite(phi).all(axis=1))} others",
            recipe.name, "Look at the teacher's accuracy.",
        )  # fmt: skip
    return u, phi


def _arrays(whitening: Whitening) -> tuple[Array, Array]:
    return jnp.asarray(whitening.shift, jnp.float32), jnp.asarray(whitening.mixing, jnp.float32)
