"""Diffusions as manifest entries and arrays, and back."""

import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, ScoreNetwork
from popcosmos_hpc.parameters import ParameterSpace


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
    return DiffusionPrior(diffusion=diffusion, shift=shift, mixing=mixing, space=space)
