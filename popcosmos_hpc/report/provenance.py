"""What is needed to repeat the run and to cite it."""

import json
import platform
from importlib import metadata

import yaml

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import Section, Table, Text

_PACKAGES = (
    "popcosmos-hpc", "jax", "jaxlib", "equinox", "numpyro", "numpy", "zarr", "pyarrow", "hats", "hats-import",
    "dask", "astropy", "matplotlib",
)  # fmt: skip

_ALWAYS = (
    "Alsing et al. 2024, pop-cosmos (arXiv:2402.00935)",
    "Thorp et al. 2024, pop-cosmos inference (arXiv:2406.19437)",
    "Thorp et al. 2025, pop-cosmos to redshift 6 (arXiv:2506.12122)",
    "Caplar et al. 2025, HATS and LSDB (arXiv:2501.02103)",
)
_BY_SAMPLER = {
    "smc": (
        "Del Moral, Doucet and Jasra 2006, sequential Monte Carlo (doi:10.1111/j.1467-9868.2006.00553.x)",
        "ter Braak 2006, differential evolution moves (doi:10.1007/s11222-006-8769-1)",
    ),
    "ensemble": (
        "Goodman and Weare 2010, affine-invariant ensembles (doi:10.2140/camcos.2010.5.65)",
        "Phan, Pradhan and Jankowiak 2019, NumPyro (arXiv:1912.11554)",
    ),
}
_BY_PRIOR = {"analytic": ("Leja et al. 2020, the mass function of the prior (arXiv:1910.04168)",)}


def provenance_section(run: RunData) -> Section:
    """Fingerprint, weights, versions, configuration, citations."""
    blocks = (
        Table(("fingerprint", ""), _fingerprint(run), "A resumed run must find all of this unchanged."),
        *_bundle(run),
        Table(
            ("package", "version"),
            _versions(),
            "Where this report was made; the run's own code is named above.",
        ),
        Text("Please cite, besides this package (CITATION.cff):"),
        Table(("reference",), tuple((line,) for line in citations(run))),
        Text("The run's configuration, with every default written out:"),
        Text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), "code"),
    )
    return Section("provenance", "Provenance and citations", blocks)


def citations(run: RunData) -> list[str]:
    """References that apply to this run: model, sampler, prior, and those that the bundle names."""
    sampler = run.config.get("sampler", {}).get("name", "")
    prior = run.config.get("model", {}).get("prior", "")
    lines = [*_ALWAYS, *_BY_PRIOR.get(prior, ()), *_BY_SAMPLER.get(sampler, ())]
    manifest = _manifest(run)
    named = manifest.get("citations") or manifest.get("provenance", {}).get("citations") or []
    return lines + [str(line) for line in named if str(line) not in lines]


def _fingerprint(run: RunData) -> tuple[tuple[str, str], ...]:
    rows = []
    for name, value in sorted(run.fingerprint.items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        rows.append((name, text if len(text) <= 200 else f"{text[:200]} ..."))
    return tuple(rows)


def _manifest(run: RunData) -> dict:
    from popcosmos_hpc.model.bundle import load_bundle

    try:
        return load_bundle(run.config["model"]["bundle"]).manifest
    except (BundleError, KeyError):
        return {}


def _bundle(run: RunData) -> tuple[Table, ...]:
    manifest = _manifest(run)
    rows = [
        (name, str(manifest[name]))
        for name in ("name", "emulator", "redshift_range", "weights_sha256", "created", "description")
        if name in manifest
    ]
    provenance = manifest.get("provenance", {})
    rows += [(name, str(value)) for name, value in provenance.items() if isinstance(value, str | int | float)]
    return (Table(("model bundle", ""), tuple(rows)),) if rows else ()


def _versions() -> tuple[tuple[str, str], ...]:
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(rows)
