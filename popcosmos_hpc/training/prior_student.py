"""Students of a diffusion prior: draws of the teacher to a flow, a one-step map, or a conditional density.

The flow is trained by maximum likelihood on the normal scores of whitened draws, and the map by regression
on the teacher's transport, point by point. Draws are fresh in each round: the teacher gives as many as are
asked for, so that none is learned by heart. Conditional densities of one parameter have `training.amplitude`.
"""

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import popcosmos_hpc
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.amplitude import AmplitudeConditional
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.diffusion_bundle import prior_from_bundle
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.student_bundle import student_to_bundle
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.model.students import FlowStudent, MapStudent, initial_flow, initial_network
from popcosmos_hpc.training.amplitude import measure_amplitude, train_amplitude
from popcosmos_hpc.training.fit import train
from popcosmos_hpc.training.prior import Whitening, whiten
from popcosmos_hpc.training.student_accuracy import measure_flow, measure_map, white
from popcosmos_hpc.training.student_draws import (
    INITIAL,
    ROUNDS,
    TEST,
    WHITENED_BY,
    WHITENING,
    stream_key,
    teacher_draws,
)
from popcosmos_hpc.training.student_recipe import RECIPES, AnyRecipe, FlowRecipe, Kind, MapRecipe

logger = logging.getLogger(__name__)

AnyStudent = FlowStudent | MapStudent | AmplitudeConditional


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
    phi = _by_margins(teacher, teacher_draws(teacher, recipe, WHITENING, 0, WHITENED_BY)[1])
    whitening = whiten(phi)
    marginals = fit_marginals(white(phi, whitening))
    scores = eqx.filter_jit(lambda rows: jax.vmap(marginals.forward)(rows)[0])

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = _by_margins(teacher, teacher_draws(teacher, recipe, ROUNDS, index, recipe.n_draws)[1])
        y = np.asarray(scores(white(drawn, whitening)))
        return y, y[:, :0]

    flow = initial_flow(stream_key(recipe, INITIAL), teacher.space.size, recipe.shape())
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
        margins=teacher.margins,
    )


def _by_margins(teacher: DiffusionPrior, phi: np.ndarray) -> np.ndarray:
    """Normal scores (draw, param) by the teacher's own margins; phi itself where it has none."""
    if teacher.margins is None:
        return phi
    margins = teacher.margins
    return np.asarray(eqx.filter_jit(lambda rows: jax.vmap(margins.forward)(rows)[0])(jnp.asarray(phi)))


def negative_log_prob(flow: Any, x: Array, _: Array) -> Array:
    """Loss of one draw, in normal scores."""
    return -flow.log_prob(x)


def train_map(teacher: DiffusionPrior, recipe: MapRecipe, checkpoint: Path | None = None) -> MapStudent:
    """Train a one-step map on its teacher's transport, by least squares.

    The linear part is solved for, so that the network learns only what departs from it. Arguments and
    errors as for `train_flow`.
    """
    u, phi = teacher_draws(teacher, recipe, WHITENING, 0, WHITENED_BY)
    linear = best_linear_map(u, phi)

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        base, target = teacher_draws(teacher, recipe, ROUNDS, index, recipe.n_draws)
        return base, white(target, linear) - base

    network = initial_network(stream_key(recipe, INITIAL), teacher.space.size, recipe.width, recipe.depth)
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
    recipe: AnyRecipe,
    out: Path,
    checkpoint_dir: Path | None = None,
) -> tuple[Path, AnyStudent]:
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


def _trained(teacher: DiffusionPrior, recipe: AnyRecipe, checkpoint: Path | None) -> AnyStudent:
    """Trained and measured."""
    key = stream_key(recipe, TEST)
    if isinstance(recipe, FlowRecipe):
        flow = train_flow(teacher, recipe, checkpoint)
        return _with_accuracy(flow, measure_flow(flow, teacher, recipe.n_test, key))
    if isinstance(recipe, MapRecipe):
        one_step = train_map(teacher, recipe, checkpoint)
        return _with_accuracy(one_step, measure_map(one_step, teacher, recipe.n_test, key))
    conditional = train_amplitude(teacher, recipe, checkpoint)
    return _with_accuracy(conditional, measure_amplitude(conditional, teacher, recipe, key))


def _with_accuracy(student: Any, measures: tuple[Measure, ...]) -> Any:
    for name, value, error in measures:
        logger.info("%s %.4f +- %.4f", name, value, error)
    rounded = tuple(Measure(m.name, float(f"{m.value:.5g}"), float(f"{m.error:.2g}")) for m in measures)
    return dataclasses.replace(student, accuracy=rounded)


def _arrays(whitening: Whitening) -> tuple[Array, Array]:
    return jnp.asarray(whitening.shift, jnp.float32), jnp.asarray(whitening.mixing, jnp.float32)
