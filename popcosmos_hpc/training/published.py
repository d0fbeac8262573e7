"""Photometry, line and mass emulators of a pop-cosmos release, read into ours.

A release is the folder `trained_models` of pop-cosmos (MIT licence), or one with the same content:

- `photulator_models/model_<depth>x<width>_<kind>_<band>_cpu.pt`, one network per band;
- `emline_speculator_models/`: the line emulator, its principal components and its wavelengths;
- `emline_bandpass_models/line_gengmmcoeffs_<band>.npy`: bandpasses, as mixtures;
- `stellar_mass_emulator.pt` and `stellar_mass_parameter_shift-scale.pkl`.

Files are read by `published_archive`, which runs nothing of them. All sizes come from the files.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.history import HISTORY
from popcosmos_hpc.model.network import Network
from popcosmos_hpc.model.photulator import LineCorrections, PhotulatorEmulator, PhotulatorStack, SurvivingMass
from popcosmos_hpc.parameters import ParameterSpace, pop_cosmos
from popcosmos_hpc.sps.cosmology import cosmology_table
from popcosmos_hpc.training.published_archive import StandIn, read_numpy, read_pickle, read_torch_archive
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS, LineOffset

_PHOTULATOR = re.compile(r"model_\d+x\d+_[^_]+_(?P<band>.+)_(?P<device>cpu|gpu)\.pt")
_LINE_NETWORKS = ("speculator-emlinesabsmags", "speculator-emlinesabsmags.pt")
_NEAREST = 1.0  # Angstrom: a line of the table must be this close to one of the emulator


class PublishedPhotometry(NamedTuple):
    """The published photometry emulators.

    Attributes:
        bands: names as in the file names, COSMOS2020's first and in their usual order.
        stack: magnitudes (band,) for N = 0.
    """

    bands: tuple[str, ...]
    stack: PhotulatorStack


def find_release(folder: Path) -> Path:
    """The folder that holds `photulator_models`: the one given, or `trained_models` in it.

    Raises:
        BundleError: neither does.
    """
    for root in (Path(folder), Path(folder) / "trained_models"):
        if (root / "photulator_models").is_dir():
            return root
    raise BundleError(
        "a folder photulator_models", "none", str(folder), "Give the folder trained_models of the release."
    )


def read_published(folder: Path) -> PublishedPhotometry:
    """Read all photometry emulators of a folder `photulator_models`.

    Raises:
        BundleError: there are none, one is damaged, or they are of different kinds.
    """
    files = photulator_files(folder)
    states = {band: read_torch_archive(path) for band, path in files.items()}
    for band, state in states.items():
        _check_inputs(state, str(files[band]))
    layered: list[Any] = [_stack_layers(states, name) for name in ("W", "b", "alphas", "betas")]
    buffers = ("parameters_shift", "parameters_scale", "magnitudes_shift", "magnitudes_scale")
    plain = (_stack([state.get(name) for state in states.values()], name, str(folder)) for name in buffers)
    stack = PhotulatorStack(*layered, *plain)
    if len({len(stack.weight), len(stack.bias), len(stack.alpha), len(stack.beta)}) != 1:
        raise BundleError(
            "networks whose output layer is activated like the others",
            f"{len(stack.weight)} layers with {len(stack.alpha)} activations",
            str(folder),
            "The files are of another version of speculator.",
        )
    return PublishedPhotometry(tuple(states), stack)


def photulator_files(folder: Path) -> dict[str, Path]:
    """Band -> file; of files for two devices, which hold the same numbers, that for the CPU.

    Raises:
        BundleError: there are none.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.pt"), reverse=True):
        if match := _PHOTULATOR.fullmatch(path.name):
            found[match["band"]] = path
    if not found:
        raise BundleError("files model_<depth>x<width>_<kind>_<band>_cpu.pt", "none", str(folder))
    order = [*(band for band in COSMOS_BANDS if band in found), *sorted(set(found) - set(COSMOS_BANDS))]
    return {band: found[band] for band in order}


def _check_inputs(state: Any, where: str) -> None:
    """The networks must take the inputs that `emulator_inputs` makes."""
    if not isinstance(state, StandIn) or not state.is_a("Photulator"):
        raise BundleError("a Photulator", getattr(state, "origin", type(state).__name__), where)
    expected = [
        {"dust2": "sqrt_dust2", "redshift": "z"}.get(name, name) for name in pop_cosmos().names if name != "N"
    ]
    named = list(state.get("parameter_names"))
    if named != expected:
        raise BundleError(f"the inputs {', '.join(expected)}", ", ".join(map(str, named)), where)


def _stack_layers(states: dict[str, StandIn], name: str) -> list[Array]:
    layers = [list(state.get(name).state["_parameters"].values()) for state in states.values()]
    if len({len(of_band) for of_band in layers}) != 1:
        raise BundleError("networks of one depth", "several depths", f"{name} of {', '.join(states)}")
    return [_stack(list(layer), f"{name}.{k}", "") for k, layer in enumerate(zip(*layers, strict=True))]


def _stack(values: list[np.ndarray], name: str, where: str) -> Array:
    shapes = {np.shape(value) for value in values}
    if len(shapes) != 1:
        raise BundleError("networks of one shape", f"{name} of {sorted(shapes)}", where)
    return jnp.asarray(np.stack([np.asarray(value) for value in values]), jnp.float32)


def published_magnitudes(published: PublishedPhotometry, space: ParameterSpace, theta: Array) -> Array:
    """AB magnitudes (band,) for N = 0 of parameters theta (param,)."""
    return published.stack(space, theta)


def read_lines(
    root: Path, bands: tuple[str, ...], offsets: Iterable[LineOffset] = LINE_OFFSETS
) -> LineCorrections:
    """Read the line emulator and the bandpasses, for the lines that have an offset.

    The decoding of the principal components is linear, like the network's output layer; both become one
    layer that gives the wanted lines only.

    Args:
        root: the release.
        bands: of the photometry emulators.
        offsets: corrections.

    Raises:
        BundleError: a file is missing or damaged, or lacks a line.
    """
    folder, offsets = Path(root) / "emline_speculator_models", tuple(offsets)
    name = next((name for name in _LINE_NETWORKS if (folder / name).is_file()), _LINE_NETWORKS[0])
    wave = np.asarray(read_numpy(folder / "elams.npy"), np.float64)
    index = np.array([_nearest(wave, line, str(folder)) for line in offsets], int)
    basis = read_numpy(folder / "PCABasis.npz")
    network = _line_network(read_torch_archive(folder / name), basis, index, str(folder / name))
    return LineCorrections(
        tuple(line.name for line in offsets),
        network,
        jnp.asarray([line.wave for line in offsets], jnp.float32),
        jnp.asarray([line.offset for line in offsets], jnp.float32),
        *_mixtures(Path(root) / "emline_bandpass_models", bands),
    )


def _nearest(wave: np.ndarray, line: LineOffset, where: str) -> int:
    index = int(np.argmin(np.abs(wave - line.wave)))
    if abs(wave[index] - line.wave) > _NEAREST:
        raise BundleError(
            f"a line within {_NEAREST} A of {line.name}, {line.wave} A", f"{wave[index]} A", where
        )
    return index


def _line_network(state: Any, basis: dict, lines: np.ndarray, where: str) -> Network:
    """Network of the chosen lines: 16 inputs to magnitudes, principal components decoded."""
    if not isinstance(state, dict):
        raise BundleError("a dictionary of parameters", type(state).__name__, where)
    arrays = [
        np.asarray(state[f"params.{k}"], np.float64) for k in range(len(state)) if f"params.{k}" in state
    ]
    weight = [array for array in arrays if array.ndim == 2]
    n = len(weight)
    if n < 2 or len(arrays) != len(state) or len(arrays) != 4 * n - 2:
        raise BundleError(
            "n matrices, n biases and n - 1 pairs of activations, named params.0 and so on",
            f"{n} matrices among {len(state)} arrays", where,
        )  # fmt: skip
    bias, alpha, beta = arrays[n : 2 * n], arrays[2 * n : 3 * n - 1], arrays[3 * n - 1 :]
    decode = basis["pca_transform_matrix"][:, lines]
    try:
        weight[-1] = (weight[-1] * basis["pca_scale"]) @ decode
        bias[-1] = (bias[-1] * basis["pca_scale"] + basis["pca_shift"]) @ decode
    except ValueError as error:
        raise BundleError("as many principal components as outputs", str(error), where) from error
    plain = (
        basis["parameters_shift"], basis["parameters_scale"],
        basis["log_spectrum_shift"][lines], basis["log_spectrum_scale"][lines],
    )  # fmt: skip
    single = lambda values: [jnp.asarray(value, jnp.float32) for value in values]  # noqa: E731
    layered: list[Any] = [single(values) for values in (weight, bias, alpha, beta)]
    return Network(*layered, *single(plain))


def _mixtures(folder: Path, bands: tuple[str, ...]) -> list[Array]:
    """Amplitudes, centres, widths and powers (band, component); the files hold a, s, b, m in turn."""
    rows = [np.asarray(read_numpy(folder / f"line_gengmmcoeffs_{band}.npy")) for band in bands]
    strange = [band for band, row in zip(bands, rows, strict=True) if row.ndim != 1 or row.size % 4]
    if strange or len({row.size for row in rows}) != 1:
        raise BundleError(
            "four equally long groups of numbers, alike in all bands", str(strange), str(folder)
        )
    amplitude, width, power, centre = np.split(np.stack(rows), 4, axis=1)
    return [jnp.asarray(values, jnp.float32) for values in (amplitude, centre, width, power)]


def read_surviving(root: Path) -> SurvivingMass:
    """Read the emulator of the surviving mass.

    Raises:
        BundleError: a file is missing or damaged, or the network is not of tanh layers.
    """
    path = Path(root) / "stellar_mass_emulator.pt"
    layers = list(sequence(read_torch_archive(path), str(path)))
    names = [layer.origin.rsplit(".", 1)[-1] for layer in layers]
    if names != ["Linear", "Tanh"] * (len(names) // 2) or not names:
        raise BundleError("linear layers, each followed by a tanh", ", ".join(names), str(path))
    shift, scale = read_pickle(Path(root) / "stellar_mass_parameter_shift-scale.pkl")
    weight = [jnp.asarray(np.asarray(layer.get("weight")).T, jnp.float32) for layer in layers[::2]]
    bias = [jnp.asarray(np.asarray(layer.get("bias")), jnp.float32) for layer in layers[::2]]
    return SurvivingMass(weight, bias, jnp.asarray(np.asarray(shift)), jnp.asarray(np.asarray(scale)))


def sequence(modules: Any, where: str) -> Iterable[StandIn]:
    """Members of a Sequential or ModuleList, in order.

    Raises:
        BundleError: it is none.
    """
    if not isinstance(modules, StandIn) or not modules.is_a("Sequential", "ModuleList"):
        raise BundleError("a sequence of layers", getattr(modules, "origin", type(modules).__name__), where)
    return modules.state["_modules"].values()


def read_emulator(root: Path, offsets: Iterable[LineOffset] = LINE_OFFSETS) -> PhotulatorEmulator:
    """The published photometry emulators, line corrections and surviving mass as one emulator.

    Args:
        root: the release, see `find_release`.
        offsets: line corrections.

    Raises:
        BundleError: a file is missing, damaged or of another kind.
    """
    published = read_published(Path(root) / "photulator_models")
    high = redshift_max(published.stack)
    return PhotulatorEmulator(
        published.bands,
        (0.0, high),
        tuple(HISTORY),
        tuple(HISTORY.values()),
        pop_cosmos(high),
        published.stack,
        read_lines(root, published.bands, offsets),
        read_surviving(root),
        jnp.asarray([0.0, high], jnp.float32),
        jnp.zeros((2, len(published.bands)), jnp.float32),
        cosmology_table(n_nodes=1024),
    )


def redshift_max(stack: PhotulatorStack) -> float:
    """End of the redshifts trained on: uniform from 0, so mean and standard deviation tell it."""
    return round(float(stack.input_shift[0, -1] + np.sqrt(3.0) * stack.input_scale[0, -1]), 1)


def file_hashes(root: Path) -> dict[str, str]:
    """sha256 of the files of a release that an import reads, by their relative path."""
    root = Path(root)
    files = [
        *photulator_files(root / "photulator_models").values(),
        *sorted(path for path in (root / "emline_speculator_models").glob("*") if path.is_file()),
        *sorted((root / "emline_bandpass_models").glob("*.npy")),
        *sorted(path for path in root.glob("*") if path.suffix in (".pt", ".pkl")),
    ]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
