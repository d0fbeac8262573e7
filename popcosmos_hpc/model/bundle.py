"""A model bundle: one self-contained, hashed model for one set of bands.

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
from popcosmos_hpc.model.emulator import AbstractEmulator, LinearEmulator, band_indices
from popcosmos_hpc.model.prior import AbstractPrior, AnalyticPrior, GaussianPrior
from popcosmos_hpc.model.speculator import SpeculatorEmulator
from popcosmos_hpc.parameters import ParameterSpace

FORMAT = 1
_SHIPPED = Path(__file__).parents[1] / "bundles"
_REQUIRED = ("format", "name", "emulator", "bands", "space", "redshift_range", "weights_sha256")


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
            emulator = SpeculatorEmulator.from_bundle(self.manifest, self.space, self.arrays)
        return emulator if bands is None else emulator.select(tuple(bands))

    def prior(self, name: str = "analytic") -> AbstractPrior:
        """A prior over the bundle's parameters.

        Args:
            name: `analytic` (the Prospector-type prior of pop-cosmos), or `gaussian` if the bundle
                holds one.

        Raises:
            BundleError: the bundle has no such prior.
        """
        if name == "gaussian" and "prior.mean" in self.arrays:
            cholesky = jnp.asarray(self.arrays["prior.cholesky"])
            return GaussianPrior(self.space, jnp.asarray(self.arrays["prior.mean"]), cholesky)
        if name == "analytic" and self.manifest["emulator"] == "speculator":
            low, high = self.redshift_range
            return AnalyticPrior(self.space, max(low, 1e-3), high)
        known = ["gaussian"] if "prior.mean" in self.arrays else ["analytic"]
        raise BundleError(
            f"one of the priors {', '.join(known)}", repr(name), str(self.path), "Set model.prior."
        )


def save_bundle(path: Path | str, manifest: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write a bundle; the format and the hash of the weights are added to the manifest.

    Args:
        path: folder to write.
        manifest: name, emulator (`linear` or `speculator`), bands, space (`ParameterSpace.to_list`),
            redshift_range, and whatever else describes the model.
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


def load_bundle(name: str | Path) -> Bundle:
    """Load and verify a bundle.

    Args:
        name: a folder, or the name of a bundle shipped with the package.

    Raises:
        BundleError: no such bundle, or it is damaged, incomplete or of another format.
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
    return Bundle(path, manifest, arrays, hashlib.sha256(text).hexdigest())


def shipped_bundles() -> tuple[str, ...]:
    """Names of the bundles in the package."""
    return tuple(sorted(path.parent.name for path in _SHIPPED.glob("*/manifest.json")))


def describe(bundle: Bundle) -> str:
    """A bundle's facts for people: bands, accuracy, origin; entries that it lacks are left out."""
    facts = bundle.manifest
    low, high = bundle.redshift_range
    lines = [
        f"name        {facts['name']}",
        f"about       {facts.get('description', '')}",
        f"redshift    {low:g} to {high:g}",
        f"parameters  {', '.join(bundle.space.names)}",
        f"bands       {', '.join(bundle.bands)}",
    ]
    accuracy = facts.get("accuracy")
    if accuracy:
        overall = accuracy["overall"]
        lines.append(
            "accuracy    median {median:.4f}, p95 {p95:.4f}, p99 {p99:.4f} mag".format(**overall)
            + f" on {accuracy['n_test']} held-out draws"
        )
        lines.append(f"\n{'band':>12} {'pivot [A]':>10} {'median':>8} {'p95':>8} {'p99':>8}  filter")
        filters = facts.get("filters", {})
        for band, row in zip(bundle.bands, accuracy["per_band"], strict=True):
            curve = filters.get(band, {})
            numbers = " ".join(f"{value:8.4f}" for value in row)
            lines.append(
                f"{band:>12} {curve.get('pivot', float('nan')):10.1f} {numbers}  {curve.get('source', '')}"
            )
        lines.append("")
    synthesis = facts.get("synthesis", {})
    lines += [f"origin      {synthesis['backend']}"] if synthesis else []
    lines += [f"cite        {'; '.join(synthesis['citations'])}"] if "citations" in synthesis else []
    return "\n".join(
        [*lines, f"weights     sha256 {facts['weights_sha256']}", f"manifest    sha256 {bundle.sha256}"]
    )


def _check_entries(manifest: dict, where: str) -> None:
    missing = [entry for entry in _REQUIRED if entry not in manifest]
    if missing:
        raise BundleError(f"the entries {', '.join(_REQUIRED)}", f"none of {', '.join(missing)}", where)
    if manifest["format"] != FORMAT:
        raise BundleError(
            f"bundle format {FORMAT}", str(manifest["format"]), where, "Install a matching version."
        )
    if manifest["emulator"] not in ("linear", "speculator"):
        raise BundleError("emulator linear or speculator", repr(manifest["emulator"]), where)
