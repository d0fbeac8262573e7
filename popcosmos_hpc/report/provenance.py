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
_BY_EMULATOR = {"speculator": ("Alsing et al. 2020, SPECULATOR (arXiv:1911.11778)",)}
_BY_BACKEND = {
    "bagpipes": (
        "Bruzual and Charlot 2003, stellar populations, 2016 version (arXiv:astro-ph/0309134)",
        "Carnall et al. 2018, BAGPIPES, whose grids were used (arXiv:1712.04452)",
        "Ferland et al. 2017, Cloudy (arXiv:1705.10877)",
        "Draine and Li 2007, dust emission (arXiv:astro-ph/0608003)",
        "Nenkova et al. 2008, torus emission (arXiv:0806.0512)",
        "Madau 1995, intergalactic absorption (doi:10.1086/175332)",
    ),
    "fsps": (
        "Conroy, Gunn and White 2009, FSPS (arXiv:0809.4261)",
        "Byler et al. 2017, nebular emission (arXiv:1611.08305)",
        "Madau 1995, intergalactic absorption (doi:10.1086/175332)",
    ),
}
_BY_PRIOR = {"analytic": ("Leja et al. 2020, the mass function of the prior (arXiv:1910.04168)",)}


def provenance_section(run: RunData) -> Section:
    """Fingerprint, weights, versions, configuration, citations."""
    blocks = (
        Table(
            ("fingerprint", ""),
            _fingerprint(run),
            "A resumed run must find this unchanged, and the settings below.",
        ),
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
    backend = manifest.get("recipe", {}).get("synthesis", {}).get("backend", "")
    lines += _BY_EMULATOR.get(manifest.get("emulator", ""), ())
    lines += _BY_BACKEND.get(backend, ())
    return lines + [str(line) for line in manifest.get("citations", ()) if str(line) not in lines]


def _fingerprint(run: RunData) -> tuple[tuple[str, str], ...]:
    rows = []
    for name, value in sorted(run.fingerprint.items()):
        if name.startswith("config."):  # shown below as a whole
            continue
        rows.append((name, _text(value)))
    return tuple(rows)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} ..."


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
    for name in ("synthesis", "software", "filters"):
        rows += [(f"{name}: {key}", _text(value)) for key, value in manifest.get(name, {}).items()]
    return (Table(("model bundle", ""), tuple(rows)),) if rows else ()


def _versions() -> tuple[tuple[str, str], ...]:
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(rows)
