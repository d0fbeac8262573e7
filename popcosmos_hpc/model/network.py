"""The multilayer perceptron of Speculator (Alsing et al. 2020, arXiv:1911.11778)."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Network(eqx.Module):
    """Standardised inputs, activated hidden layers, linear output in physical units.

    The activation of eq. 8 of the paper is [beta + (1 - beta) sigmoid(alpha a)] a per unit.

    Attributes:
        weight: matrices (in, out) per layer.
        bias: (out,) per layer.
        alpha: (out,) per hidden layer.
        beta: (out,) per hidden layer.
        input_shift: (feature,) and `input_scale`: standardise the input.
        output_shift: (output,) and `output_scale`: restore the output.
    """

    weight: list[Array]
    bias: list[Array]
    alpha: list[Array]
    beta: list[Array]
    input_shift: Array
    input_scale: Array
    output_shift: Array
    output_scale: Array

    def __call__(self, features: Array) -> Array:
        """Map features (feature,) to outputs (output,)."""
        hidden = (features - self.input_shift) / self.input_scale
        layers = zip(self.weight[:-1], self.bias[:-1], self.alpha, self.beta, strict=True)
        for weight, bias, alpha, beta in layers:
            linear = hidden @ weight + bias
            hidden = (beta + (1 - beta) * jax.nn.sigmoid(alpha * linear)) * linear
        return (hidden @ self.weight[-1] + self.bias[-1]) * self.output_scale + self.output_shift

    def select(self, outputs: list[int]) -> "Network":
        """The same network with some of its outputs."""
        index = jnp.asarray(outputs)
        return eqx.tree_at(
            lambda n: (n.weight[-1], n.bias[-1], n.output_shift, n.output_scale),
            self,
            (
                self.weight[-1][:, index],
                self.bias[-1][index],
                self.output_shift[index],
                self.output_scale[index],
            ),
        )

    def to_arrays(self, prefix: str) -> dict[str, Array]:
        """Flat names -> arrays, for safetensors."""
        arrays = {f"{prefix}.{name}": getattr(self, name) for name in _PLAIN}
        for name in _LAYERED:
            arrays |= {f"{prefix}.{name}.{layer}": value for layer, value in enumerate(getattr(self, name))}
        return arrays

    @classmethod
    def from_arrays(cls, prefix: str, arrays: dict[str, np.ndarray]) -> "Network":
        """Inverse of `to_arrays`."""
        layered = []
        for name in _LAYERED:
            count = sum(key.startswith(f"{prefix}.{name}.") for key in arrays)
            layered.append([jnp.asarray(arrays[f"{prefix}.{name}.{layer}"]) for layer in range(count)])
        return cls(*layered, *(jnp.asarray(arrays[f"{prefix}.{name}"]) for name in _PLAIN))


_LAYERED = ("weight", "bias", "alpha", "beta")
_PLAIN = ("input_shift", "input_scale", "output_shift", "output_scale")


def initial_network(key: Array, sizes: tuple[int, ...], inputs: tuple, outputs: tuple) -> Network:
    """A network with random weights.

    Args:
        key: random key.
        sizes: units of every layer, inputs and outputs included.
        inputs: shift and scale (feature,) of the inputs.
        outputs: shift and scale (output,) of the outputs.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = list(pairwise(sizes))
    weight = [
        jax.random.normal(k, pair) * jnp.sqrt(1.5 / pair[0]) for k, pair in zip(keys, pairs, strict=True)
    ]
    hidden = [size for _, size in pairs[:-1]]
    return Network(
        weight,
        [jnp.zeros(size) for _, size in pairs],
        [jnp.ones(size) for size in hidden],
        [jnp.zeros(size) for size in hidden],
        *map(jnp.asarray, inputs),
        *map(jnp.asarray, outputs),
    )
