r"""How far a student is from its teacher, with errors.

A flow q is compared with its teacher's density p, both ways,

.. math:: KL(p|q) = E_p[\ln p - \ln q], \qquad KL(q|p) = E_q[\ln q - \ln p],

and as a proposal: draws of q weighted by w = p / q are worth (E w)^2 / E w^2 of as many draws of p. As
E_q w^2 = E_p w, draws of the teacher measure the same efficiency again, and see what q leaves out.
A map is compared with its teacher's transport point by point.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.errors import TrainingError
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.model.students import FlowStudent, MapStudent
from popcosmos_hpc.training.prior import Whitening, whiten
from popcosmos_hpc.training.two_sample import classifier_accuracy

_CHUNK = 10_000
_CLASSIFIED = 20_000


def measure_flow(
    student: FlowStudent, teacher: DiffusionPrior, count: int, key: Array
) -> tuple[Measure, ...]:
    """Divergences and importance-sampling efficiency of a flow.

    Args:
        student: the flow.
        teacher: its teacher, whose density is exact.
        count: draws of each; the densities of the teacher are what takes time.
        key: for the draws; not one that the student was trained with.

    Returns:
        `efficiency` on draws of the flow, `efficiency_on_teacher_draws`, `kl_teacher_to_flow` and
        `kl_flow_to_teacher` [nat], `mean_weight` (1 if both densities are normalised), and
        `classifier_accuracy` (0.5 is a perfect student; left out without scikit-learn).

    Raises:
        TrainingError: a density is not finite.
    """
    ours, theirs = jax.random.split(key)
    phi_student = draw_pairs(student, max(count, _CLASSIFIED), ours)[1]
    phi_teacher = draw_pairs(teacher, max(count, _CLASSIFIED), theirs)[1]
    at_student = log_ratio(student, teacher, phi_student[:count])
    at_teacher = log_ratio(student, teacher, phi_teacher[:count])
    measures = [
        efficiency(at_student),
        efficiency_of_target(at_teacher),
        mean("kl_teacher_to_flow", at_teacher),
        mean("kl_flow_to_teacher", -at_student),
        mean("mean_weight", np.exp(at_student)),
    ]
    return (*measures, *_classified(phi_student, phi_teacher))


def measure_map(student: MapStudent, teacher: DiffusionPrior, count: int, key: Array) -> tuple[Measure, ...]:
    """Error of a map against its teacher's transport.

    Args:
        student: the map.
        teacher: its teacher.
        count: base points.
        key: for the base points; not one that the student was trained with.

    Returns:
        `rms` of an error in whitened phi (of unit covariance), over points and dimensions;
        `rms_worst_parameter` in that parameter's standard deviation; `error_99`, the 99th percentile of
        the absolute whitened error; and `classifier_accuracy`.

    Raises:
        TrainingError: a draw is not finite.
    """
    u, truth = draw_pairs(teacher, count, key)
    found = _chunked(_transport, student, u)
    difference = (found - truth).astype(np.float64)
    if not np.isfinite(difference).all():
        raise TrainingError("finite draws", "others", "map student", "Lower the learning rate.")
    white = np.linalg.solve(whiten(truth).mixing, difference.T).T
    worst = np.argmax(np.mean((difference / truth.std(axis=0)) ** 2, axis=0))
    tail = np.abs(white).ravel()
    quantile = float(np.quantile(tail, 0.99))
    spread = np.quantile(tail, np.clip(0.99 + 0.1 / math.sqrt(count) * np.array([-1, 1]), 0, 1))
    measures = (
        _root_mean_square("rms", np.mean(white**2, axis=1)),
        _root_mean_square("rms_worst_parameter", ((difference / truth.std(axis=0)) ** 2)[:, worst]),
        Measure("error_99", quantile, float(np.ptp(spread)) / 2),
    )
    other = draw_pairs(teacher, count, jax.random.fold_in(key, 1))[1]
    return (*measures, *_classified(found, other))


def draw_pairs(prior: AbstractPrior, count: int, key: Array) -> tuple[np.ndarray, np.ndarray]:
    """Base points u and their phi, each (count, param)."""
    keys = np.asarray(jax.random.split(key, count))
    u = _chunked(_base, prior, keys)
    return u, _chunked(_transport, prior, u)


def log_ratio(student: FlowStudent, teacher: DiffusionPrior, phi: np.ndarray) -> np.ndarray:
    """Ln of teacher / student (draw,) at phi (draw, param).

    Raises:
        TrainingError: a density is not finite.
    """
    ratio = log_density(teacher, phi) - _chunked(_log_prob, student, phi)
    if not np.isfinite(ratio).all():
        raise TrainingError(
            "finite densities of student and teacher", f"{np.sum(~np.isfinite(ratio))} others",
            "flow student", "Lower the learning rate, or look at the teacher.",
        )  # fmt: skip
    return ratio


def log_density(prior: AbstractPrior, phi: np.ndarray) -> np.ndarray:
    """Ln density (draw,) of phi (draw, param)."""
    return _chunked(_log_prob, prior, phi, 1024).astype(np.float64)


def efficiency(log_weight: np.ndarray) -> Measure:
    """Effective share (E w)^2 / E w^2 of weighted draws (draw,), with its error to first order."""
    w = np.exp(log_weight - log_weight.max())
    first, second = w.mean(), np.mean(w**2)
    value = first**2 / second
    change = 2 * first / second * w - value / second * w**2
    return Measure("efficiency", float(value), float(change.std() / math.sqrt(len(w))))


def efficiency_of_target(log_weight: np.ndarray) -> Measure:
    """The same share from draws of the target: 1 / E w, with normalised densities."""
    inverse = mean("", np.exp(log_weight))
    return Measure("efficiency_on_teacher_draws", 1 / inverse.value, inverse.error / inverse.value**2)


def mean(name: str, values: np.ndarray) -> Measure:
    """A mean and its standard error."""
    return Measure(name, float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def white(phi: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Whitened draws (draw, param), float32."""
    return np.linalg.solve(whitening.mixing, (phi - whitening.shift).T).T.astype(np.float32)


def _root_mean_square(name: str, squares: np.ndarray) -> Measure:
    """From independent squared errors (draw,)."""
    square = mean(name, squares)
    root = math.sqrt(square.value)
    return Measure(name, root, square.error / (2 * root) if root else 0.0)


def _classified(one: np.ndarray, other: np.ndarray) -> tuple[Measure, ...]:
    found = classifier_accuracy(one[:_CLASSIFIED], other[:_CLASSIFIED])
    if found is None:
        return ()
    return (Measure("classifier_accuracy", found, 0.5 / math.sqrt(min(len(one), _CLASSIFIED))),)


def _base(prior: AbstractPrior, key: Array) -> Array:
    return prior.sample_base(key)


def _transport(prior: AbstractPrior, u: Array) -> Array:
    return prior.transport(u)


def _log_prob(prior: AbstractPrior, phi: Array) -> Array:
    return prior.log_prob(phi)


@eqx.filter_jit
def _mapped(function, prior, values):
    return jax.vmap(lambda value: function(prior, value))(values)


def _chunked(function, prior: AbstractPrior, values: np.ndarray, size: int = _CHUNK) -> np.ndarray:
    """A function of one example over an array of them, in pieces of one shape."""
    pieces = []
    size = min(size, len(values))
    for start in range(0, len(values), size):
        piece = values[start : start + size]
        padded = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
        pieces.append(np.asarray(_mapped(function, prior, jnp.asarray(padded)))[: len(piece)])
    return np.concatenate(pieces)
