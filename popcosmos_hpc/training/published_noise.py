"""The noise model of a pop-cosmos release, read into ours.

A `NoiseModel` holds a conditional diffusion over ln flux error given the asinh magnitudes of all bands, the
softenings of those magnitudes, and the range to which draws are held (Thorp et al. 2025, arXiv:2506.12122).
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.noise import DiffusionUncertainty
from popcosmos_hpc.training.published_archive import read_torch_archive
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS
from popcosmos_hpc.training.published_population import expect, read_diffusion, vector, with_enough_steps

_N_CONDITIONS = 64


class PublishedNoise(NamedTuple):
    """A noise model.

    Attributes:
        model: flux errors given fluxes, both on the scale of the data.
        transport_error: rms error of its transport, in standard deviations, per number of steps.
        error_floor: fraction of the flux that the published code adds in quadrature to its draws.
    """

    model: DiffusionUncertainty
    transport_error: dict[int, float]
    error_floor: float


def read_noise(path: Path, bands: tuple[str, ...] = tuple(COSMOS_BANDS)) -> PublishedNoise:
    """Read a noise model (`noiseModel*.pt`).

    Args:
        path: the file.
        bands: names of its bands, which it does not hold.

    Raises:
        BundleError: the file is damaged, of another layout (the mixture density network of Alsing et al.
            2024 is), or of another number of bands.
    """
    where, n_bands = str(path), len(bands)
    noise = expect(read_torch_archive(path), where, "NoiseModel")
    model = expect(noise.get("model"), where, "PopulationModelDiffusionConditional")
    if (found := int(noise.get("n_bands"))) != n_bands:
        raise BundleError(f"a noise model of {n_bands} bands", f"one of {found}", where)
    names = ("shift", "scale", "conditional_shift", "conditional_scale")
    shift, scale, of_condition, scale_condition = (
        vector(model.get(name), n_bands, f"{where}, {name}") for name in names
    )
    diffusion = read_diffusion(model, n_bands, where)
    condition = jax.random.normal(jax.random.PRNGKey(1), (_N_CONDITIONS, 1)) * jnp.ones((1, n_bands))
    diffusion, errors = with_enough_steps(diffusion, n_bands, condition)
    softening = vector(noise.get("f_b"), n_bands, f"{where}, f_b")
    uncertainty = DiffusionUncertainty.standardised(
        bands, diffusion, shift, scale, softening, of_condition, scale_condition,
        (_single(noise.get("log_error_min"), where), _single(noise.get("log_error_max"), where)),
    )  # fmt: skip
    limits = [
        vector(noise.get(f"magnitude_{end}"), n_bands, f"{where}, magnitudes") for end in ("min", "max")
    ]
    uncertainty = replace(uncertainty, condition_range=jnp.asarray(np.stack(limits)))
    return PublishedNoise(uncertainty, errors, _single(noise.get("error_floor"), where))


def _single(value, where: str) -> float:
    values = np.unique(np.asarray(value, np.float64))
    if values.size != 1:
        raise BundleError("one limit for all bands", str(values.tolist()), where)
    return float(values[0])
