"""A model bundle: one self-contained, hashed model, of photometry, a population or uncertainties.

A bundle is a folder with `manifest.json` (facts) and `weights.safetensors` (arrays). The manifest
names the sha256 of the weights; both are checked on load. No file of a bundle is ever executed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.diffusion_bundle import prior_from_bundle
from popcosmos_hpc.model.emulator import AbstractEmulator, LinearEmulator, band_indices
from popcosmos_hpc.model.noise import AbstractUncertainty
from popcosmos_hpc.model.noise_bundle import uncertainty_from_bundle
from popcosmos_hpc.model.photulator import PhotulatorEmulator
from popcosmos_hpc.model.prior import AbstractPrior, AnalyticPrior, GaussianPrior
from popcosmos_hpc.model.speculator import SpeculatorEmulator
from popcosmos_hpc.parameters import ParameterSpace

FORMAT = 1
_SHIPPED = Path(__file__).parents[1] / "bundles"
_COMMON = ("format", "name", "weights_sha256")
_REQUIRED = {
    "photometry": (*_COMMON, "emulator", "bands", "space", "redshift_range"),
    "population": (*_COMMON, "space", "diffusion"),
    "uncertainty": (*_COMMON, "bands"),
    "flow": (*_COMMON, "space", "teacher_sha256", "accuracy"),
    "map": (*_COMMON, "space", "teacher_sha256", "accuracy"),
    "amplitude": (*_COMMON, "space", "parameter", "teacher_sha256", "accuracy"),
}
BUILT_IN_PRIORS = ("analytic", "gaussian")
_TRAINED = {"speculator": SpeculatorEmulator, "photulator": PhotulatorEmulator}


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Args:
        path: its folder.
        manifest: the facts of manifest.json.
        arrays: name -> array of weights.safetensors.
        sha256: hash of the manifest, which holds the hash of the weights.
    """

    path: Path
    manifest: dict
    arrays: dict[str, np.ndarray]
    sha256: str

    @property
    def kind(self) -> str:
        """`photometry`, `population`, `uncertainty`, or a student: `flow`, `map` or `amplitude`."""
        return self.manifest.get("kind", "photometry")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(self.manifest["bands"])

    @property
    def space(self) -> ParameterSpace:
        """The parameters."""
        return ParameterSpace.from_list(self.manifest["space"])

    @property
    def redshift_range(self) -> tuple[float, float]:
        """Redshifts for which the bundle may be used."""
        low, high = self.manifest["redshift_range"]
        return float(low), float(high)

    def emulator(self, bands: tuple[str, ...] | None = None) -> AbstractEmulator:
        """The emulator, for all or some of the bands.

        Raises:
            BundleError: a band is not in the bundle.
        """
        if bands is not None:
            band_indices(self.bands, tuple(bands))
        kind = self.manifest["emulator"]
        if kind == "linear":
            arrays = {name: self.arrays[f"linear.{name}"] for name in ("matrix", "offset")}
            sigma = self.arrays.get("linear.fractional_sigma")
            emulator = LinearEmulator(
                **arrays, bands=self.bands, fractional_sigma=sigma, redshift_range=self.redshift_range
            )
        else:
            emulator = _TRAINED[kind].from_bundle(self.manifest, self.space, self.arrays)
        return emulator if bands is None else emulator.select(tuple(bands))

    def prior(self, name: str = "analytic") -> AbstractPrior:
        """A prior over the bundle's parameters.

        Args:
            name: `analytic` (the Prospector-type prior of pop-cosmos); `gaussian` if the bundle holds one;
                or the name or folder of a population bundle.

        Raises:
            BundleError: there is no such prior, or it is one of other parameters.
        """
        if name == "gaussian" and "prior.mean" in self.arrays:
            cholesky = jnp.asarray(self.arrays["prior.cholesky"])
            return GaussianPrior(self.space, jnp.asarray(self.arrays["prior.mean"]), cholesky)
        if name == "analytic" and self.manifest["emulator"] != "linear":
            low, high = self.redshift_range
            return AnalyticPrior(self.space, max(low, 1e-3), high)
        own = ["gaussian"] if "prior.mean" in self.arrays else ["analytic"]
        if name in BUILT_IN_PRIORS:
            raise BundleError(f"the prior {own[0]} or a population bundle", repr(name), str(self.path))
        prior = load_population(name)
        if prior.space.names != self.space.names:
            raise BundleError(
                f"a population over the parameters {', '.join(self.space.names)}",
                f"one over {', '.join(prior.space.names)}",
                str(name),
                "Choose a population for this model, or the prior " + own[0] + ".",
            )
        return prior


def save_bundle(path: Path | str, manifest: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write a bundle; the format and the hash of the weights are added to the manifest.

    Args:
        path: folder to write.
        manifest: name, kind (`photometry` if none is given) and what it needs, such as emulator
            (`linear`, `speculator` or `photulator`), bands, space (`ParameterSpace.to_list`) and
            redshift_range; and whatever else describes the model.
        arrays: name -> array.

    Raises:
        BundleError: a required entry is missing.
    """
    path = Path(path)
    data = save_safetensors({name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())})
    manifest = {"format": FORMAT, **manifest, "weights_sha256": hashlib.sha256(data).hexdigest()}
    _check_entries(manifest, str(path))
    path.mkdir(parents=True, exist_ok=True)
    (path / "weights.safetensors").write_bytes(data)
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (path / "manifest.json").write_text(text, encoding="utf-8")
    return path


def load_population(name: str | Path) -> AbstractPrior:
    """The prior of a population bundle; arguments and errors as for `load_bundle`."""
    bundle = load_bundle(name, "population")
    return prior_from_bundle(bundle.manifest, bundle.arrays, str(bundle.path))


def load_uncertainty(name: str | Path) -> AbstractUncertainty:
    """The model of an uncertainty bundle; arguments and errors as for `load_bundle`."""
    bundle = load_bundle(name, "uncertainty")
    return uncertainty_from_bundle(bundle.manifest, bundle.arrays, str(bundle.path))


def load_bundle(name: str | Path, kind: str | None = None) -> Bundle:
    """Load and verify a bundle.

    Args:
        name: a folder, or the name of a bundle shipped with the package.
        kind: kind that it must be of; any if None.

    Raises:
        BundleError: no such bundle, or it is damaged, incomplete, or of another format or kind.
    """
    path = Path(name)
    if not path.is_dir():
        path = _SHIPPED / str(name)
    if not (path / "manifest.json").is_file() or not (path / "weights.safetensors").is_file():
        raise BundleError(
            "a folder with manifest.json and weights.safetensors, or a shipped bundle "
            f"({', '.join(shipped_bundles())})",
            repr(str(name)),
            "bundle",
            "Check the path or the name.",
        )
    text = (path / "manifest.json").read_bytes()
    data = (path / "weights.safetensors").read_bytes()
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BundleError(
            "valid JSON", str(error), str(path / "manifest.json"), "Copy the bundle anew."
        ) from error
    _check_entries(manifest, str(path))
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest["weights_sha256"]:
        raise BundleError(
            f"weights of sha256 {manifest['weights_sha256']}",
            digest,
            str(path / "weights.safetensors"),
            "The file was changed or damaged: copy the bundle anew.",
        )
    try:
        arrays = load_safetensors(data)
    except SafetensorError as error:
        raise BundleError(
            "a safetensors file", str(error), str(path / "weights.safetensors"), "Write it anew."
        ) from error
    bundle = Bundle(path, manifest, arrays, hashlib.sha256(text).hexdigest())
    if kind not in (None, bundle.kind):
        raise BundleError(f"a bundle of the kind {kind}", bundle.kind, str(path), "Name another bundle.")
    return bundle


def shipped_bundles(kind: str | None = None) -> tuple[str, ...]:
    """Names of the bundles in the package, of one kind or of all."""
    kinds = {
        path.parent.name: json.loads(path.read_bytes()).get("kind", "photometry")
        for path in _SHIPPED.glob("*/manifest.json")
    }
    return tuple(sorted(name for name, its in kinds.items() if kind in (None, its)))


def _check_entries(manifest: dict, where: str) -> None:
    kind = manifest.get("kind", "photometry")
    if kind not in _REQUIRED:
        raise BundleError(f"a kind among {', '.join(_REQUIRED)}", repr(kind), where)
    missing = [entry for entry in _REQUIRED[kind] if entry not in manifest]
    if missing:
        raise BundleError(f"the entries {', '.join(_REQUIRED[kind])}", f"none of {', '.join(missing)}", where)
    if manifest["format"] != FORMAT:
        raise BundleError(
            f"bundle format {FORMAT}", str(manifest["format"]), where, "Install a matching version."
        )
    emulators = ("linear", *_TRAINED)
    if kind == "photometry" and manifest["emulator"] not in emulators:
        raise BundleError(f"an emulator among {', '.join(emulators)}", repr(manifest["emulator"]), where)
