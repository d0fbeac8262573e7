"""PyTorch archives and pickles read without PyTorch, and without running anything that they say.

An archive is a zip file of `data.pkl`, which names classes and describes tensors, and one file of raw
numbers per storage. The unpickler here knows how tensors and NumPy arrays are built; every other class of
the packages that a release consists of becomes a `StandIn`, which holds attributes and does nothing; any
other name is refused before it is looked up.
"""

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from popcosmos_hpc.errors import BundleError

_STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_PLAIN = {"float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}
_STAND_INS = (
    "torch.nn", "torch.distributions", "torch.optim", "torch.utils", "flowfusion", "pop_cosmos", "speculator",
)  # fmt: skip
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, ValueError, TypeError, AttributeError,
    OverflowError, MemoryError, RuntimeError, OSError,
)  # fmt: skip


class StandIn:
    """The attributes of a pickled object, without its class.

    Attributes:
        origin: dotted name of the class.
        state: what the object held: attribute -> value.
    """

    origin: ClassVar[str] = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict = {}

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        """An object without attributes, whatever the arguments."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def get(self, name: str) -> Any:
        """An attribute, buffer, parameter or submodule.

        Raises:
            BundleError: there is none of that name.
        """
        for place in (
            self.state,
            *(self.state.get(part) for part in ("_buffers", "_parameters", "_modules")),
        ):
            if isinstance(place, dict) and name in place:
                return place[name]
        raise BundleError(f"an attribute {name}", "none", self.origin, "The class is of another version.")

    def is_a(self, *names: str) -> bool:
        """Whether the class has one of these names, in whatever module."""
        return self.origin.rsplit(".", 1)[-1] in names


def _stand_in(module: str, name: str) -> type[StandIn]:
    return type(name.rsplit(".", 1)[-1], (StandIn,), {"origin": f"{module}.{name}"})


class _DType:
    """Description of a NumPy array's numbers: only plain ones."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = code, "="
        if not isinstance(code, str) or re.fullmatch(r"[biuf][1248]", code) is None:
            raise pickle.UnpicklingError(f"refuses arrays of the type {code!r}")

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype:
        return np.dtype({"<": "<", ">": ">", "|": "|", "=": "<"}[self.order] + self.code)


class _Array(np.ndarray):
    """An array whose pickled state is checked before it is taken."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("refuses an array of objects")
        values = np.frombuffer(data, dtype.plain()).reshape(shape, order="F" if fortran else "C")
        restored: Any = (1, values.shape, values.dtype, False, values.tobytes())
        super().__setstate__(restored)


def _empty_array(*_: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), np.float64)


def _from_buffer(data: Any, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(bytes(data), dtype.plain()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.plain())[0]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refuses text in {encoding!r}")
    return text.encode("latin1")


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage, or with sizes that contradict its strides")
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    empty = 0 in size
    if min((offset, *size, *stride)) < 0 or (not empty and reach >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if math.prod(size) > len(storage):
        raise pickle.UnpicklingError("a tensor repeats its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *name: "".join(map(str, name)),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("collections", "defaultdict"): lambda *_: {},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    **{(home, "set"): set for home in ("__builtin__", "builtins")},
    **{(home, "dict"): dict for home in ("__builtin__", "builtins")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors, arrays and stand-ins; refuses everything else."""

    def __init__(self, data: bytes, storage: Callable[[str], bytes] | None = None):
        super().__init__(io.BytesIO(data))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Only what is admitted; the named module is never imported."""
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        # Names stand for themselves: a file can set the state of any object it gets, so none of NumPy's
        # shared ones is handed out.
        if module == "torch" and (name in _STORAGES or name in _PLAIN):
            return name
        if any(f"{module}.".startswith(f"{home}.") for home in _STAND_INS):
            return _stand_in(module, name)
        raise pickle.UnpicklingError(f"refuses {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage of the archive as a flat array."""
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError(f"refuses the persistent object {pid!r}")
        kind, name, key, _, size = pid[:5]
        if kind != "storage" or not str(key).isalnum() or name not in _STORAGES:
            raise pickle.UnpicklingError(f"refuses the persistent object {pid!r}")
        values = np.frombuffer(self._storage(str(key)), np.dtype(_STORAGES[name]))
        if len(values) < size:
            raise pickle.UnpicklingError(f"storage {key} holds {len(values)} of its {size} numbers")
        return values


def read_torch_archive(path: Path) -> Any:
    """The object in a PyTorch archive, as dicts, lists, NumPy arrays and stand-ins.

    Args:
        path: a file that `torch.save` wrote, since PyTorch 1.6.

    Raises:
        BundleError: the file is missing, damaged, no such archive, or names something not admitted.
    """
    with _guard(path, "an undamaged PyTorch archive"), zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise pickle.UnpicklingError("it holds no data.pkl")
        root = roots[0]

        def content(name: str) -> bytes:
            if members[root + name].compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"{name} is compressed, which PyTorch does not do")
            return archive.read(root + name)

        if f"{root}byteorder" in members and content("byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are not little-endian")
        return _Unpickler(content("data.pkl"), lambda key: content(f"data/{key}")).load()


def read_pickle(path: Path) -> Any:
    """The object in a plain pickle of NumPy arrays.

    Raises:
        BundleError: the file is missing, damaged, or names something not admitted.
    """
    with _guard(path, "an undamaged pickle of arrays"):
        return _Unpickler(Path(path).read_bytes()).load()


def read_numpy(path: Path) -> Any:
    """Arrays of a .npy or .npz file, which may hold no objects: an array, or name -> array.

    Raises:
        BundleError: the file is missing or damaged, or holds objects.
    """
    with _guard(path, "an undamaged NumPy file"):
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}


@contextmanager
def _guard(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a damaged or foreign file provokes into a `BundleError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError(expected, "no file", str(path)) from error
    except _DAMAGE as error:
        raise BundleError(
            expected, f"{type(error).__name__}: {error}", str(path),
            "Only tensors, arrays and the published classes are admitted; the file was not executed.",
        ) from error  # fmt: skip
