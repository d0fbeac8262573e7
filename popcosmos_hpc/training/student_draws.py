"""Draws of a teacher, fresh for each round and each purpose."""

import jax
import numpy as np
from jax import Array

from popcosmos_hpc.errors import TrainingError
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.training.student_accuracy import draw_pairs
from popcosmos_hpc.training.student_recipe import StudentRecipe

INITIAL, ROUNDS, WHITENING, TEST = range(4)  # independent streams of random numbers
WHITENED_BY = 100_000


def stream_key(recipe: StudentRecipe, stream: int, index: int = 0) -> Array:
    """Key of a round of one of the recipe's streams."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(recipe.seed), stream), index)


def teacher_draws(
    teacher: DiffusionPrior, recipe: StudentRecipe, stream: int, index: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Base points and phi (count, param) of the teacher.

    Raises:
        TrainingError: a draw is not finite.
    """
    u, phi = draw_pairs(teacher, count, stream_key(recipe, stream, index))
    if not np.isfinite(phi).all():
        raise TrainingError(
            "finite draws of the teacher", f"{np.sum(~np.isfinite(phi).all(axis=1))} others",
            recipe.name, "Look at the teacher's accuracy.",
        )  # fmt: skip
    return u, phi
