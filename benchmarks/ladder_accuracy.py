"""Whether the ladder's certificates are true: mocks of a survey, against a pool ten times larger.

    popcosmos-hpc pool build kids --draws 1000000 --out small     # another seed in its configuration
    popcosmos-hpc pool build kids --out large
    python -m benchmarks.ladder_accuracy small large --band r --magnitude 24.5

Prints, rung by rung, the share certified, errors of means, quantiles and ln Z times the square root of the
effective size (ideally 1), weights of redshift modes, false certificates, and the time. With one pool only,
shares and times.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

DRAWS = 16384  # so many that taking draws adds little to the errors
_PATH = click.Path(path_type=Path, exists=True)


class Setting(NamedTuple):
    """A model, mocks of it, and its bands."""

    model: Any
    photometry: Any
    ids: np.ndarray
    truth: np.ndarray


@click.command()
@click.argument("tested", type=_PATH)
@click.argument("gold", type=_PATH, required=False)
@click.option("--band", default="r", help="Band of the selection.")
@click.option("--magnitude", default=24.5, help="Its limit.")
@click.option("--galaxies", default=300)
@click.option("--amplitude", default="reference_amplitude", help="Student; '' leaves the rung out.")
@click.option("--smc/--no-smc", default=False, help="With the last rung.")
@click.option("--seed", default=11)
def main(tested, gold, band, magnitude, galaxies, amplitude, smc, seed):
    """Compare."""
    from popcosmos_hpc.campaign.worker import set_up_device

    set_up_device()
    setting = mocks(tested, band, magnitude, galaxies, seed)
    answer = None if gold is None else best_answer(gold, setting)
    rungs = ladder_rungs(tested, setting, amplitude, smc)
    rows = np.arange(galaxies)
    for name, sampler in rungs:
        if len(rows) == 0:
            break
        rows = rows[~report(name, sampler, setting, answer, rows)]
    click.echo(f"left: {len(rows)} of {galaxies}")
    if answer is not None:
        click.echo(f"their effective sizes in the large pool: {np.sort(answer.ess[rows]).round(1)}")


def settings_of(pool: Path):
    import yaml

    from popcosmos_hpc.campaign.pool_config import PoolConfig

    return PoolConfig.model_validate(yaml.safe_load((pool / "pool.yaml").read_text()))


def mocks(pool: Path, band: str, magnitude: float, n_galaxies: int, seed: int) -> Setting:
    """Galaxies of the pool's population at the depths of its configuration."""
    from popcosmos_hpc.campaign.mock_draws import draw_galaxies
    from popcosmos_hpc.model.bundle import load_bundle
    from popcosmos_hpc.model.galaxy import GalaxyModel
    from popcosmos_hpc.model.likelihood import Likelihood
    from popcosmos_hpc.model.mock import Condition, Coverage, MockModel, Selection
    from popcosmos_hpc.model.noise import ConstantUncertainty
    from popcosmos_hpc.photometry import Photometry

    config = settings_of(pool)
    bundle = load_bundle(config.model.bundle)
    bands = config.model.bands or bundle.bands
    likelihood = Likelihood(np.ones(len(bands)), 0.03)
    model = GalaxyModel(bundle.emulator(bands), likelihood, bundle.prior(config.model.prior))
    errors = np.array(config.softening(bands), np.float32)
    selection = Selection(bands, [Condition(band, brighter_than=magnitude)])
    mock = MockModel(model, ConstantUncertainty(bands, errors), selection, Coverage(bands, []))
    drawn = draw_galaxies(mock, seed, np.arange(n_galaxies))
    unknown = np.full(n_galaxies, np.nan, np.float32)
    photometry = Photometry(drawn.flux, drawn.flux_err, drawn.state, unknown, unknown)
    return Setting(model, photometry, np.arange(n_galaxies), drawn.theta)


def ladder_rungs(pool: Path, setting: Setting, amplitude: str, smc: bool):
    from popcosmos_hpc.inference.amplitude import AmplitudeSampler
    from popcosmos_hpc.inference.marginal import MarginalSMC
    from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
    from popcosmos_hpc.inference.pool_start import PoolSMC
    from popcosmos_hpc.model.student_bundle import load_amplitude
    from popcosmos_hpc.survey.pool_store import open_pool

    device = pool_on_device(open_pool(pool))
    rungs: list = [(f"pool {n}", PoolSampler(device, n_picks=n)) for n in (16384, 131072)]
    if amplitude:
        student = load_amplitude(amplitude, "conditional", settings_of(pool).model.prior)
        rungs += [
            (f"amplitude {n}", AmplitudeSampler(device, n_picks=4 * n, n_values=n, conditional=student))
            for n in (8192, 32768)
        ]
        if smc:
            rungs.append(("smc", MarginalSMC(pool=device, n_moves=12, conditional=student)))
    elif smc:
        rungs.append(("smc", PoolSMC(pool=device, n_moves=12)))
    return rungs


def best_answer(pool: Path, setting: Setting):
    """Posteriors from a million picks of a large pool."""
    from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
    from popcosmos_hpc.survey.pool_store import open_pool

    sampler = PoolSampler(pool_on_device(open_pool(pool)), n_picks=1 << 20)
    return fit(sampler, setting, setting.ids, seed=999)[0]


def fit(sampler, setting: Setting, rows: np.ndarray, seed: int):
    from popcosmos_hpc.inference.batch import fit_galaxies
    from popcosmos_hpc.photometry import Photometry

    part = Photometry(*(values[rows] for values in setting.photometry))
    one = Photometry(*(values[:1] for values in part))
    draws = min(DRAWS, sampler.max_draws)
    fit_galaxies(sampler, setting.model, one, setting.ids[rows[:1]], seed, draws=draws)
    start = time.perf_counter()
    posterior = fit_galaxies(sampler, setting.model, part, setting.ids[rows], seed, draws=draws)
    return posterior, (time.perf_counter() - start) / len(rows)


def report(name: str, sampler, setting: Setting, answer, rows: np.ndarray) -> np.ndarray:
    """Print one rung's line; returns which rows it certified."""
    from popcosmos_hpc.errors import Status

    posterior, seconds = fit(sampler, setting, rows, seed=5)
    certified = posterior.status == Status.OK
    click.echo(
        f"{name:<16} given {len(rows):4d}, certified {certified.sum():4d} "
        f"({100 * certified.sum() / len(setting.ids):.1f} % of all), {1e3 * seconds:.1f} ms each, "
        f"ESS 10/50/90 %: {np.percentile(posterior.ess, [10, 50, 90]).round(0)}"
    )
    if answer is None:
        return certified
    known = np.flatnonzero(certified & (answer.ess[rows] > 400))
    if len(known):
        _errors(posterior, answer, known, rows)
    return certified


def _errors(posterior, answer, known: np.ndarray, rows: np.ndarray) -> None:
    mine, gold = posterior.theta[known], answer.theta[rows[known]]
    taken = 1 / mine.shape[1] + 1 / gold.shape[1]
    size = 1 / (1 / posterior.ess[known] + 1 / answer.ess[rows[known]] + taken)
    of_evidence = 1 / (1 / posterior.ess[known] + 1 / answer.ess[rows[known]])
    sd = gold.std(1)
    mean = (mine.mean(1) - gold.mean(1)) / sd * np.sqrt(size)[:, None]
    shift = (posterior.log_evidence[known] - answer.log_evidence[rows[known]]) * np.sqrt(of_evidence)
    # The median's standard error of a normal posterior is 1.2533 times that of its mean.
    median = (np.median(mine, 1) - np.median(gold, 1)) / (1.2533 * sd) * np.sqrt(size)[:, None]
    rms = lambda x, axis=None: np.sqrt(np.mean(np.square(x), axis))  # noqa: E731
    click.echo(
        f"{'':<16} against {len(known)}: rms error x sqrt(ESS): means {rms(mean):.2f} "
        f"(redshift {rms(mean[:, -1]):.2f}), medians {rms(median):.2f}, ln Z {rms(shift):.2f}"
    )
    worst = np.abs(mean).max(1) / np.sqrt(size)
    false = (np.abs(mean).max(1) > 5) & (worst > 0.25)
    click.echo(
        f"{'':<16} false certificates (a mean off by more than 5 of its errors and 0.25 sd): {false.sum()}; "
        f"|ln Z| off 10/50/90 %: {np.percentile(np.abs(shift / np.sqrt(of_evidence)), [10, 50, 90]).round(3)}"
    )
    weights = [_mode_weights(a[:, -1], b[:, -1]) for a, b in zip(mine, gold, strict=True)]
    off = np.array([abs(a - b) for a, b in filter(None, weights)])
    if len(off):
        click.echo(
            f"{'':<16} weights of modes, {len(off)} bimodal: off by {off.mean():.3f}, most {off.max():.3f}"
        )


def _mode_weights(mine: np.ndarray, gold: np.ndarray):
    """Weight above the widest gap of a bimodal redshift posterior, in both; None if it is not bimodal."""
    ordered = np.sort(gold)
    low, high = len(gold) // 20, len(gold) - len(gold) // 20
    gaps = np.diff(ordered[low:high])
    if len(gaps) == 0 or gaps.max() < 0.1 * (1 + np.median(gold)):
        return None
    split = ordered[low + gaps.argmax()] + 0.5 * gaps.max()
    return np.mean(mine > split), np.mean(gold > split)


if __name__ == "__main__":
    main()
