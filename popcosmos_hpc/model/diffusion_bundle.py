"""Diffusions as manifest entries and arrays, and back."""

import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, ScoreNetwork
from popcosmos_hpc.model.marginals import Marginals
from popcosmos_hpc.parameters import ParameterSpace

_MARGINALS = ("scores", "knots", "slopes")


def diffusion_to_bundle(
    diffusion: Diffusion, prefix: str = "diffusion"
) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entries and arrays from which `diffusion_from_bundle` restores a trained diffusion."""
    network, schedule = diffusion.network, diffusion.schedule
    if not isinstance(network, ScoreNetwork):
        raise BundleError("a ScoreNetwork", type(network).__name__, "diffusion")
    facts = {
        "schedule": {
            "kind": schedule.kind, "low": schedule.low, "high": schedule.high, "t_min": schedule.t_min,
            "clock": schedule.clock,
        },
        "output": diffusion.output,
        "n_steps": diffusion.n_steps,
        "activation": network.activation,
        "time_power": network.time_power,
        "n_layers": len(network.weights),
    }  # fmt: skip
    arrays = {f"{prefix}.frequencies": np.asarray(network.frequencies)}
    for index, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        arrays[f"{prefix}.weight.{index}"] = np.asarray(weight)
        arrays[f"{prefix}.bias.{index}"] = np.asarray(bias)
    return facts, arrays


def diffusion_from_bundle(
    facts: dict, arrays: dict[str, np.ndarray], where: str, prefix: str = "diffusion"
) -> Diffusion:
    """Inverse of `diffusion_to_bundle`.

    Raises:
        BundleError: an entry or array is missing.
    """
    try:
        layers = range(int(facts["n_layers"]))
        network = ScoreNetwork(
            tuple(jnp.asarray(arrays[f"{prefix}.weight.{index}"]) for index in layers),
            tuple(jnp.asarray(arrays[f"{prefix}.bias.{index}"]) for index in layers),
            jnp.asarray(arrays[f"{prefix}.frequencies"]),
            str(facts["activation"]),
            float(facts["time_power"]),
        )
        schedule = NoiseSchedule(**facts["schedule"])
        return Diffusion(network, schedule, facts["output"], int(facts["n_steps"]))
    except KeyError as error:
        raise BundleError(f"the entry {error}", "none", where, "Write the bundle anew.") from error


def prior_to_bundle(prior: DiffusionPrior) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entries and arrays of a population."""
    facts, arrays = diffusion_to_bundle(prior.diffusion)
    arrays |= {"prior.shift": np.asarray(prior.shift), "prior.mixing": np.asarray(prior.mixing)}
    if prior.margins is not None:
        arrays |= marginals_to_arrays(prior.margins)
    return {"kind": "population", "space": prior.space.to_list(), "diffusion": facts}, arrays


def prior_from_bundle(manifest: dict, arrays: dict[str, np.ndarray], where: str) -> DiffusionPrior:
    """Inverse of `prior_to_bundle`.

    Raises:
        BundleError: an entry or array is missing.
    """
    diffusion = diffusion_from_bundle(manifest["diffusion"], arrays, where)
    missing = [name for name in ("prior.shift", "prior.mixing") if name not in arrays]
    if missing:
        raise BundleError(f"the arrays {', '.join(missing)}", "none", where, "Write the bundle anew.")
    shift, mixing = (jnp.asarray(arrays[f"prior.{name}"], jnp.float32) for name in ("shift", "mixing"))
    space = ParameterSpace.from_list(manifest["space"])
    margins = marginals_from_arrays(arrays, space.size, where) if has_marginals(arrays) else None
    return DiffusionPrior(diffusion=diffusion, shift=shift, mixing=mixing, space=space, margins=margins)


def has_marginals(arrays: dict[str, np.ndarray], prefix: str = "marginals") -> bool:
    """Whether any array of `marginals_to_arrays` is there."""
    return any(f"{prefix}.{name}" in arrays for name in _MARGINALS)


def marginals_to_arrays(marginals: Marginals, prefix: str = "marginals") -> dict[str, np.ndarray]:
    """Arrays from which `marginals_from_arrays` restores marginals."""
    return {f"{prefix}.{name}": np.asarray(getattr(marginals, name)) for name in _MARGINALS}


def marginals_from_arrays(
    arrays: dict[str, np.ndarray], size: int, where: str, prefix: str = "marginals"
) -> Marginals:
    """Inverse of `marginals_to_arrays`, for `size` parameters.

    Raises:
        BundleError: an array is missing or of another shape, or the maps are not monotone.
    """
    found = {name: arrays.get(f"{prefix}.{name}", np.empty(0)) for name in _MARGINALS}
    count = found["scores"].size
    for name, array in found.items():
        shape = (count,) if name == "scores" else (size, count)
        if array.shape != shape or count < 2:
            got = f"shape {array.shape}" if array.size else "none"
            raise BundleError(
                f"an array {prefix}.{name} of shape {shape}", got, where, "Write the bundle anew."
            )
    rising = all(np.all(np.diff(found[name], axis=-1) > 0) for name in ("knots", "scores"))
    if not rising or not np.all(found["slopes"] > 0):
        raise BundleError(
            "marginals of rising knots and positive slopes", "others", where, "Write the bundle anew."
        )
    return Marginals(**{name: jnp.asarray(value, jnp.float32) for name, value in found.items()})
