r"""The emulators that pop-cosmos published: one network per band, line corrections, surviving mass.

The photometry holds emission lines already; what is known to be wrong with their strengths is added,

.. math:: f_b = f_b^{phot} + \sum_l o_l f_{b,l},

with fractional offsets o_l (Leistedt et al. 2023, arXiv:2207.07673; Alsing et al. 2024,
arXiv:2402.00935). Lines whose offset is zero are not evaluated.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Scalar

from popcosmos_hpc.model.emulator import AbstractEmulator, band_indices
from popcosmos_hpc.model.features import continuum_features
from popcosmos_hpc.model.history import history_quantities
from popcosmos_hpc.model.network import Network
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.cosmology import CosmologyTable, cosmology_table

_LN10 = 2.302585
_LINE_FLUX = 3.2143882024295685e-7 * 1e9
"""Nanomaggies, per Lsun at 10 pc, of a line times its observed wavelength times a normalised bandpass."""
_TAIL = 20.0  # widths from a bandpass's centre beyond which nothing passes; larger powers overflow


def emulator_inputs(
    space: ParameterSpace, theta: Array, with_normalisation: bool, root: bool = True
) -> Array:
    """What the published networks take: theta, with sqrt(dust2) in place of dust2, with or without N."""
    return jnp.stack(
        [
            jnp.sqrt(theta[index]) if root and name == "dust2" else theta[index]
            for index, name in enumerate(space.names)
            if with_normalisation or name != "N"
        ]
    )


class PhotulatorStack(eqx.Module):
    """One network per band, evaluated together; magnitudes of N = 0.

    Every layer is activated by [beta + (1 - beta) sigmoid(alpha a)] a, the output layer included: without
    that the published weights give nonsense.

    Attributes:
        weight: (band, in, out) per layer.
        bias: (band, out) per layer; `alpha` and `beta` alike.
        input_shift: (band, input) and `input_scale`: standardise the input.
        output_shift: (band,) and `output_scale`: restore the magnitude.
    """

    weight: list[Array]
    bias: list[Array]
    alpha: list[Array]
    beta: list[Array]
    input_shift: Array
    input_scale: Array
    output_shift: Array
    output_scale: Array

    def __call__(self, space: ParameterSpace, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """AB magnitudes (band,) for N = 0."""
        inputs = emulator_inputs(space, theta, with_normalisation=False)

        def one(band: "PhotulatorStack") -> Array:
            hidden = (inputs - band.input_shift) / band.input_scale
            for weight, bias, alpha, beta in zip(band.weight, band.bias, band.alpha, band.beta, strict=True):
                linear = hidden @ weight + bias
                hidden = (beta + (1 - beta) * jax.nn.sigmoid(alpha * linear)) * linear
            return hidden[0] * band.output_scale + band.output_shift

        return eqx.filter_vmap(one)(self)

    def select(self, index: Sequence[int]) -> "PhotulatorStack":
        """Some of the bands."""
        rows = jnp.asarray(index)
        return jax.tree.map(lambda array: array[rows], self)

    def to_arrays(self) -> dict[str, Array]:
        """Flat names -> arrays."""
        arrays = {f"photulator.{name}": getattr(self, name) for name in _PLAIN}
        for name in _LAYERED:
            layers = enumerate(getattr(self, name))
            arrays |= {f"photulator.{name}.{layer}": value for layer, value in layers}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "PhotulatorStack":
        """Inverse of `to_arrays`."""
        parts: list[Any] = [_layers(f"photulator.{name}", arrays) for name in _LAYERED]
        return cls(*parts, *(jnp.asarray(arrays[f"photulator.{name}"]) for name in _PLAIN))


class SharedPhotometry(eqx.Module):
    """One network for all bands, trained on a `PhotulatorStack`; magnitudes of N = 0.

    Attributes:
        network: features to magnitudes (band,).
        pivots: (pivot,) wavelengths of the features [Angstrom]; all bands it was trained on.
        cosmology: ages.
    """

    network: Network
    pivots: Array
    cosmology: CosmologyTable

    def __call__(self, space: ParameterSpace, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """AB magnitudes (band,) for N = 0."""
        return self.network(continuum_features(space, self.cosmology, self.pivots, None, theta))

    def select(self, index: Sequence[int]) -> "SharedPhotometry":
        """Some of the bands."""
        return SharedPhotometry(self.network.select(list(index)), self.pivots, self.cosmology)

    def to_arrays(self) -> dict[str, Array]:
        """Flat names -> arrays."""
        return {**self.network.to_arrays("shared"), "shared.pivots": self.pivots}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "SharedPhotometry":
        """Inverse of `to_arrays`."""
        network = Network.from_arrays("shared", arrays)
        return cls(network, jnp.asarray(arrays["shared.pivots"]), cosmology_table(n_nodes=1024))


class LineCorrections(eqx.Module):
    """Fluxes of emission lines in bands, times the fractional offsets of their strengths.

    A bandpass is a mixture of generalised normal densities of the observed wavelength,
    A beta / (2 s Gamma(1/beta)) exp(-|(x - m)/s|^beta).

    Attributes:
        names: of the lines.
        network: 16 inputs to -2.5 log10 of the luminosity (line,) [Lsun per Msun formed].
        wave: (line,) rest-frame vacuum wavelengths [Angstrom].
        offset: (line,) fractional offsets.
        amplitude: (band, component) and `centre` [Angstrom], `width` [Angstrom], `power`: the mixtures,
            normalised as A above.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    network: Network
    wave: Array
    offset: Array
    amplitude: Array
    centre: Array
    width: Array
    power: Array

    def fluxes(self, space: ParameterSpace, theta: Float[Array, " param"]) -> Array:
        """Fluxes (band, line) of each line in each band for N = 0, without the offsets [nanomaggies]."""
        magnitude = self.network(emulator_inputs(space, theta, with_normalisation=True))
        observed = self.wave * (1 + theta[space.index("redshift")])
        distance = jnp.abs(observed[:, None, None] - self.centre[None]) / self.width[None]
        log_shape = jnp.log(self.power / (2 * self.width)) - jax.lax.lgamma(1 / self.power)
        density = jnp.exp(log_shape[None] - jnp.minimum(distance, _TAIL) ** self.power[None])
        luminosity = _LINE_FLUX * observed * jnp.exp(-0.4 * _LN10 * magnitude)
        return jnp.sum(self.amplitude[None] * density, axis=-1).T * luminosity[None]

    def __call__(self, space: ParameterSpace, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """What the offsets add to the fluxes for N = 0 [nanomaggies]."""
        return self.fluxes(space, theta) @ self.offset

    @property
    def mean_wavelength(self) -> Float[Array, " band"]:
        """Mean wavelengths of the bandpasses [Angstrom]."""
        return jnp.sum(self.amplitude * self.centre, axis=-1) / jnp.sum(self.amplitude, axis=-1)

    def select(self, index: Sequence[int]) -> "LineCorrections":
        """Some of the bands."""
        rows = jnp.asarray(index)
        mixtures = lambda lines: [getattr(lines, name) for name in _MIXTURE]  # noqa: E731
        return eqx.tree_at(mixtures, self, [values[rows] for values in mixtures(self)])

    def to_arrays(self) -> dict[str, Array]:
        """Flat names -> arrays."""
        plain = {f"line.{name}": getattr(self, name) for name in (*_LINE, *_MIXTURE)}
        return {**self.network.to_arrays("lines"), **plain}

    @classmethod
    def from_arrays(cls, names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> "LineCorrections":
        """Inverse of `to_arrays`."""
        plain = (jnp.asarray(arrays[f"line.{name}"]) for name in (*_LINE, *_MIXTURE))
        return cls(names, Network.from_arrays("lines", arrays), *plain)


class SurvivingMass(eqx.Module):
    """Fraction of the mass formed that survives: tanh layers, the last one included.

    Attributes:
        weight: (in, out) per layer.
        bias: (out,) per layer.
        input_shift: (param,) and `input_scale`: standardise theta itself, with linear dust2.
    """

    weight: list[Array]
    bias: list[Array]
    input_shift: Array
    input_scale: Array

    def __call__(self, theta: Float[Array, " param"]) -> Scalar:
        """The fraction, kept within (1e-3, 1)."""
        hidden = (theta - self.input_shift) / self.input_scale
        for weight, bias in zip(self.weight, self.bias, strict=True):
            hidden = jnp.tanh(hidden @ weight + bias)
        return jnp.clip(hidden[0], 1e-3, 1.0)

    def to_arrays(self) -> dict[str, Array]:
        """Flat names -> arrays."""
        layers = {f"surviving.weight.{index}": value for index, value in enumerate(self.weight)}
        layers |= {f"surviving.bias.{index}": value for index, value in enumerate(self.bias)}
        shift, scale = self.input_shift, self.input_scale
        return {**layers, "surviving.input_shift": shift, "surviving.input_scale": scale}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "SurvivingMass":
        """Inverse of `to_arrays`."""
        weight, bias = (_layers(f"surviving.{name}", arrays) for name in ("weight", "bias"))
        shift, scale = (jnp.asarray(arrays[f"surviving.input_{name}"]) for name in ("shift", "scale"))
        return cls(weight, bias, shift, scale)


class PhotulatorEmulator(AbstractEmulator):
    """Photometry, masses and star formation by the published networks of pop-cosmos.

    Attributes:
        photometry: theta to AB magnitudes for N = 0; the published stack, or one network distilled from it.
        lines: corrections to the strengths of emission lines.
        surviving: theta to the surviving fraction of the mass.
        error_redshift: (node,) and `error`: (node, band) fractional emulator error; zero where unmeasured.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    redshift_range: tuple[float, float] = eqx.field(static=True)
    derived_names: tuple[str, ...] = eqx.field(static=True)
    derived_units: tuple[str, ...] = eqx.field(static=True)
    space: ParameterSpace = eqx.field(static=True)
    photometry: PhotulatorStack | SharedPhotometry
    lines: LineCorrections
    surviving: SurvivingMass
    error_redshift: Array
    error: Array
    cosmology: CosmologyTable

    def __call__(self, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """Noiseless fluxes in nanomaggies, emission lines and their corrections included."""
        magnitudes = self.photometry(self.space, theta)
        at_ten_parsec = jnp.exp(-0.4 * _LN10 * (magnitudes - 22.5)) + self.lines(self.space, theta)
        return at_ten_parsec * jnp.exp(-0.4 * _LN10 * theta[self.space.index("N")])

    def sigma(self, redshift: Scalar) -> Float[Array, " band"]:
        """Fractional 1-sigma error: the measured 68 % half-width at a redshift, or zero."""
        return jnp.stack([jnp.interp(redshift, self.error_redshift, column) for column in self.error.T])

    def select(self, bands: tuple[str, ...]) -> "PhotulatorEmulator":
        """The same emulator for some of its bands; the others are not evaluated."""
        index = band_indices(self.bands, tuple(bands))
        return replace(
            self,
            bands=tuple(bands),
            photometry=self.photometry.select(index),
            lines=self.lines.select(index),
            error=self.error[:, jnp.asarray(index)],
        )

    def derived(self, theta: Float[Array, " param"]) -> Float[Array, " derived"]:
        """Masses, star-formation rates and age; see `history_quantities`."""
        return history_quantities(self.space, self.cosmology, theta, jnp.log10(self.surviving(theta)))

    def to_bundle(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Manifest entries and arrays from which `from_bundle` restores the emulator."""
        facts = {
            "emulator": "photulator",
            "photometry": "stack" if isinstance(self.photometry, PhotulatorStack) else "shared",
            "bands": list(self.bands),
            "space": self.space.to_list(),
            "redshift_range": list(self.redshift_range),
            "lines": list(self.lines.names),
            "derived": dict(zip(self.derived_names, self.derived_units, strict=True)),
        }
        arrays = {
            **self.photometry.to_arrays(), **self.lines.to_arrays(), **self.surviving.to_arrays(),
            "error.redshift": self.error_redshift, "error.fraction": self.error,
        }  # fmt: skip
        return facts, {name: np.asarray(value) for name, value in arrays.items()}

    @classmethod
    def from_bundle(
        cls, facts: dict, space: ParameterSpace, arrays: dict[str, np.ndarray]
    ) -> "PhotulatorEmulator":
        """Inverse of `to_bundle`."""
        low, high = facts["redshift_range"]
        photometry = PhotulatorStack if facts["photometry"] == "stack" else SharedPhotometry
        return cls(
            tuple(facts["bands"]),
            (float(low), float(high)),
            tuple(facts["derived"]),
            tuple(facts["derived"].values()),
            space,
            photometry.from_arrays(arrays),
            LineCorrections.from_arrays(tuple(facts["lines"]), arrays),
            SurvivingMass.from_arrays(arrays),
            jnp.asarray(arrays["error.redshift"]),
            jnp.asarray(arrays["error.fraction"]),
            cosmology_table(n_nodes=1024),
        )


def _layers(prefix: str, arrays: dict[str, np.ndarray]) -> list[Array]:
    count = sum(name.startswith(f"{prefix}.") for name in arrays)
    return [jnp.asarray(arrays[f"{prefix}.{index}"]) for index in range(count)]


_LAYERED = ("weight", "bias", "alpha", "beta")
_PLAIN = ("input_shift", "input_scale", "output_shift", "output_scale")
_LINE = ("wave", "offset")
_MIXTURE = ("amplitude", "centre", "width", "power")
