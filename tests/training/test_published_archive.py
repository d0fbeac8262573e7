"""Reading PyTorch archives: what is admitted comes out right, and all else is refused without being run."""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.training.published_archive import StandIn, read_numpy, read_pickle, read_torch_archive
from tests.torch_archive import Module, Named, Storage, Tensor, activation, linear, write_archive, write_raw


def test_tensors_modules_and_plain_values_come_back(tmp_path):
    values = np.arange(12, dtype=np.float32)
    model = Module(
        "flowfusion.diffusion.MLP",
        {"W": np.array([1.5, -2.5], np.float32)},
        {"pi": np.array(np.pi, np.float32)},
        {"layer": linear(np.eye(2, 3), [1.0, 2.0]), "activation": activation("Tanh")},
        n_layers=4,
        transposed=Tensor(Storage(values), 2, (2, 3), (1, 4)),
        double=np.array([1e300]),
        nothing=None,
    )
    read = read_torch_archive(write_archive(tmp_path / "a.pt", model))
    assert read.origin == "flowfusion.diffusion.MLP" and read.is_a("MLP") and not read.is_a("VPSDE")
    np.testing.assert_array_equal(read.get("W"), [1.5, -2.5])
    assert read.get("pi") == np.float32(np.pi) and read.get("n_layers") == 4 and read.get("nothing") is None
    np.testing.assert_array_equal(read.get("transposed"), [[2, 6, 10], [3, 7, 11]])
    assert read.get("double")[0] == 1e300
    assert read.get("activation").origin.endswith("Tanh")
    np.testing.assert_array_equal(read.get("layer").get("weight"), np.eye(2, 3))
    with pytest.raises(BundleError, match="an attribute lost"):
        read.get("lost")


def test_a_shared_module_stays_one(tmp_path):
    sde = Module("flowfusion.diffusion.VPSDE", beta_min=0.1)
    model = Module("flowfusion.diffusion.ScoreModel", modules={"first": sde, "second": sde})
    read = read_torch_archive(write_archive(tmp_path / "a.pt", model))
    assert read.get("first") is read.get("second")


def test_a_state_dict_is_a_dict(tmp_path):
    state = OrderedDict([("params.0", np.ones((2, 3), np.float32)), ("n", 3)])
    read = read_torch_archive(write_archive(tmp_path / "a.pt", state))
    assert list(read) == ["params.0", "n"] and read["params.0"].shape == (2, 3)


class _Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_hostile_pickles_are_refused_and_do_nothing(tmp_path, protocol):
    import os
    import subprocess

    trace = tmp_path / "trace"
    calls = [_Runs(os.system, f"touch {trace}"), _Runs(eval, f"open({str(trace)!r}, 'w')")]
    calls += [_Runs(subprocess.check_call, ["touch", str(trace)]), _Runs(open, str(trace), "w")]
    for call in calls:
        pickled = pickle.dumps({"weights": [call]}, protocol)
        archive = write_raw(tmp_path / "evil.pt", pickled)
        (tmp_path / "evil.pkl").write_bytes(pickled)
        for read, path in ((read_torch_archive, archive), (read_pickle, tmp_path / "evil.pkl")):
            with pytest.raises(BundleError, match=r"refuses .* not executed"):
                read(path)
        assert not trace.exists()
    pickle.loads(pickle.dumps(calls[0], protocol))
    assert trace.exists(), "the pickle is no danger, so the test shows nothing"


@pytest.mark.parametrize(
    "name", ["os.system", "torch.load", "torch.hub.load", "builtins.getattr", "torchvision.ops.nms",
             "flowfusional.run", "numpy.fromfile", "functools.partial", "torch.storage._load_from_bytes"],
)  # fmt: skip
def test_names_that_are_not_admitted_are_refused(tmp_path, name):
    with pytest.raises(BundleError, match=f"refuses {name}"):
        read_torch_archive(write_archive(tmp_path / "a.pt", [Named(*name.rsplit(".", 1))]))


@pytest.mark.parametrize(
    "code",
    [
        b"ctorch\nFloatStorage\n}b.",  # state for a number format
        b"cnumpy\ndtype\n}b.",  # state for a class
        b"ccollections\nOrderedDict\nN}Vx\nI1\ns\x86b.",  # attributes for a shared class
        b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.",  # an array type of objects
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vf4\nI0\nI1\ntRVabcd\ntR.",  # text as bytes
        b"\x80\x02\x82\x01.",  # a registered extension
        b"Vx\n(tR.",  # a call of text
        b"0.", b"(", b"", b"\x80\xff.",
    ],
)  # fmt: skip
def test_strange_pickles_are_refused(tmp_path, code):
    with pytest.raises(BundleError, match="undamaged"):
        read_torch_archive(write_raw(tmp_path / "a.pt", code))
    assert np.dtype("<f4").fields is None and np.arange(3, dtype=np.float32).sum() == 3


def test_stand_ins_do_nothing_when_called(tmp_path):
    """A class of an admitted package is inert, whatever its name and arguments."""
    model = Module("torch.nn.modules.os.system", plain=True, command="touch trace")
    read = read_torch_archive(write_archive(tmp_path / "a.pt", model))
    assert isinstance(read, StandIn) and read.state == {"command": "touch trace"}


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (Tensor(Storage(np.ones(6, np.float32)), 0, (7,), (1,)), "beyond its storage"),
        (Tensor(Storage(np.ones(6, np.float32)), 4, (3,), (1,)), "beyond its storage"),
        (Tensor(Storage(np.ones(6, np.float32)), 0, (2, 3), (4, 1)), "beyond its storage"),
        (Tensor(Storage(np.ones(6, np.float32)), -1, (2,), (1,)), "beyond its storage"),
        (Tensor(Storage(np.ones(6, np.float32)), 5, (2,), (-1,)), "beyond its storage"),
        (Tensor(Storage(np.ones(6, np.float32)), 0, (10**12,), (0,)), "repeats its storage"),
        (Tensor(Storage(np.ones(6, np.float32), 100), 0, (6,), (1,)), "6 of its 100"),
        (Tensor(Storage(np.ones(6, np.float32)), 0, (2, 3), (1,)), "contradict"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, tensor, complaint):
    with pytest.raises(BundleError, match=complaint):
        read_torch_archive(write_archive(tmp_path / "a.pt", {"w": tensor}))


def test_damaged_archives_are_refused(tmp_path):
    whole = write_archive(tmp_path / "a.pt", {"w": np.ones(1000, np.float32)}).read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(BundleError, match="undamaged"):
            read_torch_archive(tmp_path / "cut.pt")
    spoilt = bytearray(whole)
    spoilt[whole.index(np.float32(1).tobytes() * 4) + 2] ^= 1
    (tmp_path / "spoilt.pt").write_bytes(bytes(spoilt))
    with pytest.raises(BundleError, match="CRC"):
        read_torch_archive(tmp_path / "spoilt.pt")
    with pytest.raises(BundleError, match="no file"):
        read_torch_archive(tmp_path / "none.pt")
    with pytest.raises(BundleError, match="compressed"):
        read_torch_archive(write_archive(tmp_path / "z.pt", {"w": np.ones(9)}, zipfile.ZIP_DEFLATED))


def test_a_missing_storage_is_refused(tmp_path):
    pickled = zipfile.ZipFile(write_archive(tmp_path / "a.pt", np.ones(4))).read("model/data.pkl")
    with pytest.raises(BundleError, match="KeyError"):
        read_torch_archive(write_raw(tmp_path / "b.pt", pickled))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_come_back(tmp_path, protocol):
    arrays = (np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    more = {"int": np.array([1, 2], np.int64), "big": np.array([1.5], ">f8"), "scalar": np.float64(2.5)}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps((*arrays, more), protocol))
    first, second, third = read_pickle(path)
    np.testing.assert_array_equal(first, arrays[0])
    np.testing.assert_array_equal(second, arrays[1])
    assert third["int"].tolist() == [1, 2] and third["big"][0] == 1.5 and third["scalar"] == 2.5
    assert first.dtype == np.float32


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.array([{}, None], object), 2))
    with pytest.raises(BundleError, match="refuses"):
        read_pickle(path)
    np.save(tmp_path / "a.npy", np.array([{}, None], object))
    with pytest.raises(BundleError):
        read_numpy(tmp_path / "a.npy")
