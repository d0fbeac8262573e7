"""Students as bundles: written with what was measured of them, and read for a stated use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import Permute
from flowjax.distributions import Transformed

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.amplitude import AmplitudeConditional, MixtureNetwork, initial_mixture_network
from popcosmos_hpc.model.bundle import Bundle, load_bundle
from popcosmos_hpc.model.diffusion_bundle import has_marginals, marginals_from_arrays, marginals_to_arrays
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.model.students import (
    FlowShape,
    FlowStudent,
    MapStudent,
    flow_networks,
    initial_flow,
    initial_network,
)

_CURE = "Write the bundle anew."


def load_flow(name: str | Path, use: str, teacher: str | Path | None = None) -> FlowStudent:
    """The flow of a bundle, if it is accurate enough for a use.

    Args:
        name: a folder, or the name of a shipped bundle.
        use: `density` or `proposal`; see `model.student_uses.USES`.
        teacher: population bundle whose student it must be; any if None.

    Raises:
        BundleError: as `load_bundle`; or the flow is the student of another teacher, or not accurate
            enough for the use.
        ConfigurationError: there is no such use.
    """
    bundle = load_bundle(name, "flow")
    _check_teacher(bundle, teacher)
    student = flow_from_bundle(bundle)
    student.require(use)
    return student


def load_map(name: str | Path, use: str, teacher: str | Path | None = None) -> MapStudent:
    """The one-step map of a bundle, if it is accurate enough for a use.

    Args:
        name: a folder, or the name of a shipped bundle.
        use: `prior`, `pool` or `preconditioner`; see `model.student_uses.USES`.
        teacher: population bundle whose student it must be; any if None.

    Raises:
        BundleError: as `load_flow`.
        ConfigurationError: there is no such use.
    """
    bundle = load_bundle(name, "map")
    _check_teacher(bundle, teacher)
    student = map_from_bundle(bundle)
    student.require(use)
    return student


def load_amplitude(name: str | Path, use: str, teacher: str | Path | None = None) -> AmplitudeConditional:
    """The conditional density of a bundle, if it is accurate enough for a use.

    Args:
        name: a folder, or the name of a shipped bundle.
        use: `conditional` or `proposal`; see `model.student_uses.USES`.
        teacher: population bundle whose student it must be; any if None.

    Raises:
        BundleError: as `load_flow`.
        ConfigurationError: there is no such use.
    """
    bundle = load_bundle(name, "amplitude")
    _check_teacher(bundle, teacher)
    student = amplitude_from_bundle(bundle)
    student.require(use)
    return student


def student_to_bundle(
    student: FlowStudent | MapStudent | AmplitudeConditional,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entries and arrays of a student."""
    linear = ("shift", "whitening" if isinstance(student, AmplitudeConditional) else "mixing")
    arrays = {f"student.{name}": np.asarray(getattr(student, name)) for name in linear}
    if isinstance(student, AmplitudeConditional):
        network = student.network.network
        facts: dict[str, Any] = {
            "amplitude": {
                "n_components": student.n_components, "width": network.width_size, "depth": network.depth,
            },
            "parameter": student.parameter,
        }  # fmt: skip
        arrays["student.slope"] = np.asarray(student.network.slope)
        arrays["student.location"] = np.asarray([student.centre, student.width])
        arrays |= marginals_to_arrays(student.margins)
    elif isinstance(student, FlowStudent):
        facts = {"flow": student.shape._asdict()}
        network = flow_networks(student.flow)
        arrays |= marginals_to_arrays(student.marginals)
        arrays |= {} if student.margins is None else marginals_to_arrays(student.margins, "margins")
        if (permute := _permute(student.flow)) is not None:
            arrays["flow.permutation"] = np.asarray(permute.permutation[0])
    else:
        network = student.network
        facts = {"map": {"width": network.width_size, "depth": network.depth}}
    for index, layer in enumerate(network.layers):
        arrays |= {f"student.{part}.{index}": np.asarray(getattr(layer, part)) for part in ("weight", "bias")}
    accuracy = {name: {"value": value, "error": error} for name, value, error in student.accuracy}
    return {"kind": student.kind, "space": student.space.to_list(), **facts, "accuracy": accuracy}, arrays


def flow_from_bundle(bundle: Bundle) -> FlowStudent:
    """Inverse of `student_to_bundle` for a flow.

    Raises:
        BundleError: an entry or array is missing, or of another shape.
    """
    where, space = str(bundle.path), bundle.space
    facts = _facts(bundle, FlowShape._fields)
    shape = FlowShape(**facts)
    flow = initial_flow(jax.random.PRNGKey(0), space.size, shape)
    network = _with_arrays(flow_networks(flow), bundle)
    flow = eqx.tree_at(flow_networks, flow, network)
    if (permute := _permute(flow)) is not None:
        order = _array(bundle, "flow.permutation", permute.permutation[0]).astype(np.int32)
        if not np.array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(space.size), order.shape)):
            raise BundleError(f"permutations of {space.size} parameters", "others", where, _CURE)
        pair = ((jnp.asarray(order),), (jnp.asarray(np.argsort(order, axis=1).astype(np.int32)),))
        flow = eqx.tree_at(
            lambda f: (_permute(f).permutation, _permute(f).inverse_permutation),  # type: ignore[union-attr]
            flow,
            pair,
        )
    shift, mixing = _whitening(bundle)
    return FlowStudent(
        shift=shift,
        mixing=mixing,
        space=space,
        accuracy=accuracy_of(bundle),
        marginals=marginals_from_arrays(bundle.arrays, space.size, where),
        flow=flow,
        shape=shape,
        margins=marginals_from_arrays(bundle.arrays, space.size, where, "margins")
        if has_marginals(bundle.arrays, "margins")
        else None,
    )


def map_from_bundle(bundle: Bundle) -> MapStudent:
    """Inverse of `student_to_bundle` for a map; errors as for `flow_from_bundle`."""
    facts = _facts(bundle, ("width", "depth"))
    network = initial_network(jax.random.PRNGKey(0), bundle.space.size, **facts)
    network = _with_arrays(network, bundle)
    shift, mixing = _whitening(bundle)
    return MapStudent(
        shift=shift, mixing=mixing, space=bundle.space, accuracy=accuracy_of(bundle), network=network
    )


def amplitude_from_bundle(bundle: Bundle) -> AmplitudeConditional:
    """Inverse of `student_to_bundle` for a conditional density; errors as for `flow_from_bundle`."""
    facts, n_others = _facts(bundle, ("n_components", "width", "depth")), bundle.space.size - 1
    empty = initial_mixture_network(jax.random.PRNGKey(0), jnp.zeros(n_others), **facts)
    slope = _array(bundle, "student.slope", empty.slope)
    shift = _array(bundle, "student.shift", np.empty(n_others))
    whitening = _array(bundle, "student.whitening", np.empty((n_others, n_others)))
    centre, width = _array(bundle, "student.location", np.empty(2)).astype(np.float32)
    return AmplitudeConditional(
        network=MixtureNetwork(_with_arrays(empty.network, bundle), jnp.asarray(slope)),
        margins=marginals_from_arrays(bundle.arrays, n_others, str(bundle.path)),
        shift=jnp.asarray(shift, jnp.float32),
        whitening=jnp.asarray(whitening, jnp.float32),
        centre=jnp.asarray(centre),
        width=jnp.asarray(width),
        space=bundle.space,
        parameter=bundle.manifest["parameter"],
        accuracy=accuracy_of(bundle),
    )


def accuracy_of(bundle: Bundle) -> tuple[Measure, ...]:
    """What a student's manifest says was measured.

    Raises:
        BundleError: a measure is not a number with an error.
    """
    found = bundle.manifest["accuracy"]
    try:
        return tuple(
            Measure(str(name), float(entry["value"]), float(entry["error"])) for name, entry in found.items()
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            "measures, each of a value and its error, as accuracy", repr(found), str(bundle.path), _CURE
        ) from error


def _check_teacher(bundle: Bundle, teacher: str | Path | None) -> None:
    if teacher is None:
        return
    given = load_bundle(teacher, "population")
    if bundle.manifest["teacher_sha256"] != given.sha256:
        raise BundleError(
            f"the student of {teacher}, a population of sha256 {given.sha256}",
            f"that of a teacher of sha256 {bundle.manifest['teacher_sha256']}",
            str(bundle.path),
            "Train a student of this population, or name its teacher.",
        )


def _permute(flow: Transformed) -> Permute | None:
    """The permutations between layers, stacked; two dimensions are swapped instead."""
    step = flow.bijection.bijection.bijection.bijections[1]  # type: ignore[attr-defined]
    return step if isinstance(step, Permute) else None


def _facts(bundle: Bundle, names: tuple[str, ...]) -> dict[str, Any]:
    facts = bundle.manifest.get(bundle.kind)
    if not isinstance(facts, Mapping) or set(facts) != set(names):
        raise BundleError(
            f"an entry {bundle.kind} with {', '.join(names)}", repr(facts), str(bundle.path), _CURE
        )
    wrong = [
        name for name in names if isinstance(facts[name], bool) or not isinstance(facts[name], int | float)
    ]
    if wrong:
        raise BundleError(f"numbers for {', '.join(wrong)}", repr(facts), str(bundle.path), _CURE)
    return {name: facts[name] for name in names}


def _array(bundle: Bundle, name: str, like: Any) -> np.ndarray:
    """An array of the shape that the manifest promises."""
    found = bundle.arrays.get(name)
    if found is None or found.shape != like.shape:
        got = "none" if found is None else f"shape {found.shape}"
        raise BundleError(f"an array {name} of shape {like.shape}", got, str(bundle.path), _CURE)
    return found


def _with_arrays(network: eqx.nn.MLP, bundle: Bundle) -> eqx.nn.MLP:
    parts = lambda n: [getattr(layer, part) for layer in n.layers for part in ("weight", "bias")]  # noqa: E731
    names = [f"student.{part}.{i}" for i in range(len(network.layers)) for part in ("weight", "bias")]
    loaded = [
        jnp.asarray(_array(bundle, name, part)) for name, part in zip(names, parts(network), strict=True)
    ]
    return eqx.tree_at(parts, network, loaded)


def _whitening(bundle: Bundle) -> tuple[jax.Array, jax.Array]:
    size = bundle.space.size
    shift = _array(bundle, "student.shift", np.empty(size))
    mixing = _array(bundle, "student.mixing", np.empty((size, size)))
    return jnp.asarray(shift, jnp.float32), jnp.asarray(mixing, jnp.float32)
