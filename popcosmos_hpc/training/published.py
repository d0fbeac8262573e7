"""Published photometry emulators of pop-cosmos, read from PyTorch archives without PyTorch.

The archives hold whole pickled objects. They are read with `zipfile` and an unpickler that admits
tensors and empty stand-ins for the named classes only, so no code of a file ever runs.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.parameters import ParameterSpace

_TYPES = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}  # fmt: skip
_PREFIX, _SUFFIX = "model_4x128_alsing20_", "_cpu.pt"


class _StandIn:
    """Holds the attributes of a pickled object whose class is not wanted."""

    def __setstate__(self, state: dict) -> None:
        self.state = state


def _rebuild(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    strides = tuple(step * storage.itemsize for step in stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
    if min((offset, *size, *stride)) < 0 or last >= max(len(storage), 1):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Admits tensors and stand-ins; everything else is refused."""

    _ALLOWED: ClassVar[dict] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("__builtin__", "set"): set,
        ("builtins", "set"): set,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch.nn.modules.container", "ParameterList"): _StandIn,
        ("speculator.speculator", "Photulator"): _StandIn,
    }

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Only what the table names."""
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return self._ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """A storage of the archive as a flat array."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not str(key).isalnum() or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"refuses the persistent object {pid!r}")
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)


def read_torch_archive(path: Path) -> Any:
    """The object in a PyTorch archive, as dicts, lists, NumPy arrays and stand-ins.

    Raises:
        BundleError: the file is no such archive, or names anything but tensors and known classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[
                : -len("/data.pkl")
            ]
            return _Unpickler(archive, root).load()
    except (
        zipfile.BadZipFile,
        StopIteration,
        KeyError,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
    ) as error:
        raise BundleError(
            "a PyTorch archive of a published emulator", str(error), str(path),
            "Only tensors and the published classes are admitted; the file was not executed.",
        ) from error  # fmt: skip


class PublishedPhotometry(NamedTuple):
    """The published emulators, stacked over bands.

    Attributes:
        bands: names as in the file names.
        weights: per layer (band, in, out); `biases`, `alphas`, `betas`: per layer (band, out).
        input_shift: (band, input) and `input_scale`; output_shift: (band,) and `output_scale`.
    """

    bands: tuple[str, ...]
    weights: list[Array]
    biases: list[Array]
    alphas: list[Array]
    betas: list[Array]
    input_shift: Array
    input_scale: Array
    output_shift: Array
    output_scale: Array


def read_published(folder: Path) -> PublishedPhotometry:
    """Read all photometry emulators of a folder.

    Raises:
        BundleError: there are none, or one is damaged.
    """
    files = sorted(Path(folder).glob(f"{_PREFIX}*{_SUFFIX}"))
    if not files:
        raise BundleError(f"files {_PREFIX}BAND{_SUFFIX}", "none", str(folder))
    states = [read_torch_archive(path).state for path in files]
    listed = lambda name: [  # noqa: E731
        jnp.asarray(np.stack(layer))
        for layer in zip(
            *(list(s["_modules"][name].state["_parameters"].values()) for s in states), strict=True
        )
    ]
    buffer = lambda name: jnp.asarray(np.stack([s["_buffers"][name] for s in states]))  # noqa: E731
    names = tuple(path.name[len(_PREFIX) : -len(_SUFFIX)] for path in files)
    return PublishedPhotometry(
        names, listed("W"), listed("b"), listed("alphas"), listed("betas"),
        buffer("parameters_shift"), buffer("parameters_scale"),
        buffer("magnitudes_shift"), buffer("magnitudes_scale"),
    )  # fmt: skip


def published_magnitudes(published: PublishedPhotometry, space: ParameterSpace, theta: Array) -> Array:
    """AB magnitudes (band,) for N = 0 of parameters theta (param,).

    The output layer is activated like the hidden ones; without that the models give nonsense.
    """
    inputs = jnp.stack(
        [
            jnp.sqrt(theta[i]) if name == "dust2" else theta[i]
            for i, name in enumerate(space.names)
            if name != "N"
        ]
    )

    def one(weights, biases, alphas, betas, shift, scale, out_shift, out_scale):
        hidden = (inputs - shift) / scale
        for weight, bias, alpha, beta in zip(weights, biases, alphas, betas, strict=True):
            linear = hidden @ weight + bias
            hidden = (beta + (1 - beta) * jax.nn.sigmoid(alpha * linear)) * linear
        return hidden[0] * out_scale + out_shift

    return eqx.filter_vmap(one)(*published[1:])
