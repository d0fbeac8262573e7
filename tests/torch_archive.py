"""Archives and modules in PyTorch's own layout, written without PyTorch."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Named(NamedTuple):
    """A class or function, by name only."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers in the archive; `claimed` of them, if that is not the truth."""

    values: np.ndarray
    claimed: int | None = None


class Tensor(NamedTuple):
    """A view of a storage, or a wrong one."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


class Call(NamedTuple):
    """A function or class, by name, called with arguments."""

    named: Named
    arguments: tuple


class Module:
    """A `torch.nn.Module` or another object: a class name and what it holds."""

    def __init__(self, origin: str, parameters=(), buffers=(), modules=(), plain: bool = False, **attributes):
        self.named = Named(*origin.rsplit(".", 1))
        parts = {"_parameters": parameters, "_buffers": buffers, "_modules": modules}
        parts = {} if plain else {name: OrderedDict(part) for name, part in parts.items()}
        self.state = {**({} if plain else {"training": True}), **parts, **attributes}


def linear(weight, bias) -> Module:
    """A linear layer; weight (out, in)."""
    return Module(
        "torch.nn.modules.linear.Linear",
        {"weight": np.asarray(weight, np.float32), "bias": np.asarray(bias, np.float32)},
        in_features=int(np.shape(weight)[1]),
        out_features=int(np.shape(weight)[0]),
    )


def activation(name: str) -> Module:
    """An activation: `Tanh`, `SiLU` and so on."""
    return Module(f"torch.nn.modules.activation.{name}")


class _Pickler(pickle._Pickler):
    """Writes tensors, modules and names as PyTorch and Python would, though the classes do not exist."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=2)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        kind = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage"}[obj.values.dtype.str[1:]]
        self.storages.append(obj.values)
        size = obj.values.size if obj.claimed is None else obj.claimed
        return ("storage", Named("torch", kind), str(len(self.storages) - 1), "cuda:0", size)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, np.ndarray):
            array = np.array(obj, order="C")
            strides = tuple(step // array.itemsize for step in array.strides)
            self.save(Tensor(Storage(array.ravel()), 0, array.shape, strides))
        elif isinstance(obj, Tensor):
            self._call(Named("torch._utils", "_rebuild_tensor_v2"), (*obj, False, OrderedDict()))
        elif isinstance(obj, Call):
            self._call(*obj)
        elif isinstance(obj, Module) and id(obj) in self.memo:
            self.write(self.get(self.memo[id(obj)][0]))
        elif isinstance(obj, Module):
            self._call(obj.named, (), pickle.NEWOBJ)
            self.memoize(obj)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)

    def _call(self, named: Named, arguments: tuple, code: bytes = pickle.REDUCE) -> None:
        self.save(named)
        self.write(pickle.MARK)
        for argument in arguments:
            self.save(argument)
        self.write(pickle.TUPLE + code)


def write_archive(path: Path, obj: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an object as `torch.save` does."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(obj)
    return write_raw(path, stream.getvalue(), pickler.storages, compression)


def write_raw(path: Path, pickled: bytes, storages=(), compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive of a given pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", b"little")
        for index, values in enumerate(storages):
            archive.writestr(f"model/data/{index}", values.tobytes())
        archive.writestr("model/version", b"3\n")
    return path
