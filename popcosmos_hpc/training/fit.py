"""The one training loop: jitted steps, progress, checkpoints, resume."""

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from popcosmos_hpc.errors import TrainingError

logger = logging.getLogger(__name__)

Loss = Callable[[Any, Array, Array], Array]
SAVE_EVERY = 60.0
"""Least time between checkpoints [s]."""


class Schedule(NamedTuple):
    """Length and pace of a training.

    Attributes:
        n_rounds: rounds; each sees one set of examples from the source once.
        batch_size: examples per gradient step.
        learning_rate: peak of a cosine that ends at zero.
        seed: of shuffling.
        average: decay per step of the moving average of the weights; 0 keeps none, and the last weights
            are returned.
        clip: largest norm of a gradient; longer ones are shortened to it. 0 for none.
        patience: rounds without a better held-out value after which a validated training ends.
    """

    n_rounds: int
    batch_size: int = 1000
    learning_rate: float = 2e-3
    seed: int = 0
    average: float = 0.0
    clip: float = 0.0
    patience: int = 10


class Best(NamedTuple):
    """The best weights of a validated training, their held-out value, and the round they are of."""

    value: Array
    round: Array
    weights: Any


class Progress(NamedTuple):
    """What a checkpoint holds: the round to do next, the model, the optimiser's state, the average."""

    round: Array
    model: Any
    optimiser: Any
    average: Any = None
    best: Best | None = None


def train(
    model: Any,
    loss: Loss,
    source: Callable[[int], tuple[np.ndarray, np.ndarray]],
    schedule: Schedule,
    checkpoint: Path | None = None,
    name: str = "training",
    per_batch: bool = False,
    validate: Callable[[Any], float] | None = None,
) -> Any:
    """Minimise a loss over examples.

    A killed training resumes at its last finished round when called again with the same checkpoint.

    Args:
        model: an equinox module.
        loss: (model, input, target) of ONE example -> (), to be averaged; of a whole batch if `per_batch`.
        source: round -> inputs (example, ...) and targets (example, ...).
        schedule: length and pace.
        checkpoint: file for the state, written atomically after a round.
        name: for the log.
        per_batch: the loss compares a batch as a whole, as distances between distributions do.
        validate: model -> held-out value, told once a round; the model of the lowest one is returned, and
            training ends early once the schedule's patience is spent.

    Returns:
        The trained model, averaged if the schedule says so.

    Raises:
        TrainingError: the loss is no longer finite; the last checkpoint is of a round before that.
    """
    optimiser = _optimiser(schedule)
    progress = _begin(model, optimiser, schedule, validate is not None)
    if checkpoint is not None and checkpoint.exists():
        progress = eqx.tree_deserialise_leaves(checkpoint, progress)
        logger.info("%s: resumes at round %d of %d", name, int(progress.round), schedule.n_rounds)
    step = _make_step(loss, optimiser, schedule.average, per_batch)
    saved = told = time.monotonic()
    for index in range(int(progress.round), schedule.n_rounds):
        if _spent(progress.best, index, schedule):
            logger.info("%s: no better held-out value for %d rounds", name, schedule.patience)
            break
        inputs, targets = _batches(*source(index), schedule, index)
        rates = _cosine(schedule, index, len(inputs))
        model, state, average, mean = step(*progress[1:4], inputs, targets, rates)
        _check(float(mean), name, index, checkpoint)
        progress = Progress(jnp.asarray(index + 1, jnp.int32), model, state, average, progress.best)
        if validate is not None:
            progress = _validated(progress, validate)
        now = time.monotonic()
        if checkpoint is not None and (now - saved > SAVE_EVERY or index + 1 == schedule.n_rounds):
            save_checkpoint(checkpoint, progress)
            saved = now
        if now - told > 20 or index + 1 == schedule.n_rounds:
            _tell(progress, name, schedule.n_rounds, float(mean))
            told = now
    if progress.best is not None:
        return eqx.combine(progress.best.weights, progress.model)
    return _current(progress)


def _tell(progress: Progress, name: str, n_rounds: int, loss: float) -> None:
    held = "" if progress.best is None else f", best held-out {float(progress.best.value):.5f}"
    logger.info("%s: round %d of %d, loss %.5f%s", name, int(progress.round), n_rounds, loss, held)


def _begin(
    model: Any, optimiser: optax.GradientTransformation, schedule: Schedule, validated: bool
) -> Progress:
    # Steps donate their arguments; what the caller holds, and every part of the state, stays its own.
    model = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)
    weights = eqx.filter(model, eqx.is_inexact_array)
    copy = lambda: jax.tree.map(jnp.copy, weights)  # noqa: E731
    average = copy() if schedule.average else None
    best = Best(jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32), copy()) if validated else None
    return Progress(jnp.zeros((), jnp.int32), model, optimiser.init(weights), average, best)


def _current(progress: Progress) -> Any:
    """The model as it would be used: averaged where averages are kept."""
    if progress.average is None:
        return progress.model
    return eqx.combine(progress.average, progress.model)


def _spent(best: Best | None, index: int, schedule: Schedule) -> bool:
    return best is not None and index - int(best.round) > schedule.patience


def _validated(progress: Progress, validate: Callable[[Any], float]) -> Progress:
    model = _current(progress)
    value = validate(model)
    if progress.best is None or not value < float(progress.best.value):
        return progress
    weights = jax.tree.map(jnp.copy, eqx.filter(model, eqx.is_inexact_array))
    return progress._replace(best=Best(jnp.asarray(value, jnp.float32), progress.round, weights))


def _optimiser(schedule: Schedule) -> optax.GradientTransformation:
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=schedule.learning_rate)
    return optax.chain(optax.clip_by_global_norm(schedule.clip), adam) if schedule.clip else adam


def _check(mean: float, name: str, index: int, checkpoint: Path | None) -> None:
    if math.isfinite(mean):
        return
    kept = "none was kept" if checkpoint is None or not checkpoint.exists() else str(checkpoint)
    raise TrainingError(
        "a finite loss", str(mean), f"{name}, round {index + 1}",
        f"Lower the learning rate or look at the training data. Last good state: {kept}.",
    )  # fmt: skip


def save_checkpoint(path: Path, progress: Progress) -> None:
    """Write a checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    eqx.tree_serialise_leaves(partial, progress)
    os.replace(partial, path)


def _make_step(loss: Loss, optimiser: optax.GradientTransformation, decay: float, per_batch: bool):
    def mean_loss(model, inputs, targets):
        if per_batch:
            return loss(model, inputs, targets)
        return jnp.mean(jax.vmap(loss, in_axes=(None, 0, 0))(model, inputs, targets))

    @eqx.filter_jit(donate="all")
    def run(model, state, average, inputs, targets, rates):
        arrays, static = eqx.partition(model, eqx.is_inexact_array)

        def body(carry, batch):
            arrays, state, average = carry
            x, y, rate = batch
            _adam_state(state).hyperparams["learning_rate"] = rate
            value, gradient = jax.value_and_grad(lambda a: mean_loss(eqx.combine(a, static), x, y))(arrays)
            updates, state = optimiser.update(gradient, state, arrays)
            arrays = optax.apply_updates(arrays, updates)
            if average is not None:
                average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, arrays)
            return (arrays, state, average), value

        carry = (arrays, state, average)
        (arrays, state, average), values = jax.lax.scan(body, carry, (inputs, targets, rates))
        return eqx.combine(arrays, static), state, average, jnp.mean(values)

    return run


def _adam_state(state: Any) -> Any:
    """The part that holds the learning rate: all of it, or what follows the clipping."""
    return state if hasattr(state, "hyperparams") else state[1]


def _batches(
    inputs: np.ndarray, targets: np.ndarray, schedule: Schedule, index: int
) -> tuple[np.ndarray, np.ndarray]:
    size = schedule.batch_size
    count = len(inputs) // size
    order = np.random.default_rng([schedule.seed, index]).permutation(len(inputs))[: count * size]
    cut = lambda values: values[order].reshape(count, size, *values.shape[1:])  # noqa: E731
    return cut(inputs), cut(targets)


def _cosine(schedule: Schedule, index: int, n_steps: int) -> np.ndarray:
    position = (index + np.arange(n_steps) / n_steps) / schedule.n_rounds
    return (schedule.learning_rate * 0.5 * (1 + np.cos(math.pi * position)) + 1e-7).astype(np.float32)
