"""Uncertainty models as manifest entries and arrays, and back."""

import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.diffusion_bundle import diffusion_from_bundle, diffusion_to_bundle
from popcosmos_hpc.model.noise import AbstractUncertainty, ConstantUncertainty, DiffusionUncertainty, Trend

_TREND = ("knots", "centre", "width")
_VECTORS = ("mixing", "softening", "condition_shift", "condition_scale", "condition_range")


def uncertainty_to_bundle(model: AbstractUncertainty) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entries and arrays from which `uncertainty_from_bundle` restores an uncertainty model.

    Raises:
        BundleError: the model is of no kind that can be stored.
    """
    facts = {"kind": "uncertainty", "bands": list(model.bands)}
    if isinstance(model, ConstantUncertainty):
        return facts | {"form": "constant"}, {"uncertainty.flux_err": np.asarray(model.flux_err)}
    if not isinstance(model, DiffusionUncertainty):
        raise BundleError("a ConstantUncertainty or DiffusionUncertainty", type(model).__name__, "bundle")
    diffusion, arrays = diffusion_to_bundle(model.diffusion)
    arrays |= {f"uncertainty.{name}": np.asarray(getattr(model.trend, name)) for name in _TREND}
    arrays |= {f"uncertainty.{name}": np.asarray(getattr(model, name)) for name in _VECTORS}
    return facts | {"form": "diffusion", "clip": list(model.clip), "diffusion": diffusion}, arrays


def uncertainty_from_bundle(manifest: dict, arrays: dict[str, np.ndarray], where: str) -> AbstractUncertainty:
    """Inverse of `uncertainty_to_bundle`.

    Raises:
        BundleError: an entry or array is missing, or an array is not of one row per band.
    """
    bands = tuple(manifest["bands"])
    form = manifest.get("form")
    if form == "constant":
        return ConstantUncertainty(bands, _array(arrays, "flux_err", len(bands), where))
    if form != "diffusion":
        raise BundleError("form constant or diffusion", repr(form), where)
    if missing := [name for name in ("diffusion", "clip") if name not in manifest]:
        raise BundleError(f"the entries {', '.join(missing)}", "none", where, "Write the bundle anew.")
    trend = Trend(*(_array(arrays, name, len(bands), where) for name in _TREND))
    vectors = {name: _array(arrays, name, len(bands), where) for name in _VECTORS}
    low, high = manifest["clip"]
    diffusion = diffusion_from_bundle(manifest["diffusion"], arrays, where)
    return DiffusionUncertainty(
        bands=bands, diffusion=diffusion, trend=trend, **vectors, clip=(float(low), float(high))
    )


def _array(arrays: dict[str, np.ndarray], name: str, n_bands: int, where: str):
    """The array of a name, with a dimension of the bands' length."""
    value = arrays.get(f"uncertainty.{name}")
    if value is None:
        raise BundleError(f"the array uncertainty.{name}", "none", where, "Write the bundle anew.")
    if n_bands not in value.shape:
        raise BundleError(f"an array uncertainty.{name} of {n_bands} bands", f"shape {value.shape}", where)
    return jnp.asarray(value, jnp.float32)
