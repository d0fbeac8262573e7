"""How accurate an emulator is, per band and redshift: a table, a plot, and a likelihood term."""

from itertools import pairwise
from pathlib import Path

import numpy as np

_BRIGHT = 15.0  # mag per Msun: fainter photometry belongs to no observable galaxy


def redshift_edges(low: float, high: float) -> np.ndarray:
    """Edges of redshift bins, finer at low redshift."""
    return low + (high - low) * np.linspace(0.0, 1.0, 13) ** 1.3


def accuracy_table(predicted: np.ndarray, exact: np.ndarray, redshift: np.ndarray, edges: np.ndarray) -> dict:
    """Absolute errors of held-out magnitudes where the exact one is below 15 per Msun.

    Args:
        predicted: (draw, band) [mag].
        exact: (draw, band) [mag].
        redshift: (draw,).
        edges: (bin + 1,) of redshift bins.

    Returns:
        Median, p95 and p99 overall, per band, per band and bin, and the 68 % half-width of the
        signed error per band and bin (NaN-free: an empty cell takes the band's overall value).
    """
    error = np.where(exact < _BRIGHT, predicted - exact, np.nan)
    levels = (50, 95, 99)
    overall = np.nanpercentile(np.abs(error), levels)
    bands = np.nanpercentile(np.abs(error), levels, axis=0).T
    cells = np.empty((len(edges) - 1, error.shape[1], 4))
    for row, (low, high) in enumerate(pairwise(edges)):
        chosen = error[(redshift >= low) & (redshift < high)]
        for band in range(error.shape[1]):
            values = chosen[:, band][np.isfinite(chosen[:, band])]
            values = values if len(values) >= 50 else error[:, band][np.isfinite(error[:, band])]
            sixteen, eighty_four = np.percentile(values, [16, 84])
            cells[row, band] = [*np.percentile(np.abs(values), levels), 0.5 * (eighty_four - sixteen)]
    return {
        "unit": "mag",
        "bright_limit": _BRIGHT,
        "n_test": len(exact),
        "redshift_edges": edges.tolist(),
        "overall": dict(zip(("median", "p95", "p99"), overall.tolist(), strict=True)),
        "per_band": bands.tolist(),
        "columns": ["median", "p95", "p99"],
        "per_bin": cells[..., :3].tolist(),
        "half_width": cells[..., 3].tolist(),
    }


def write_report(table: dict, bands: tuple[str, ...], folder: Path) -> None:
    """Write accuracy.md and accuracy.png beside the bundle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [
        f"# Accuracy on {table['n_test']} held-out draws [mag]",
        "",
        "| band | median | p95 | p99 |",
        "|---|---|---|---|",
        *(
            f"| {band} | {m:.4f} | {a:.4f} | {b:.4f} |"
            for band, (m, a, b) in zip(bands, table["per_band"], strict=True)
        ),
        "| all | {median:.4f} | {p95:.4f} | {p99:.4f} |".format(**table["overall"]),
        "",
    ]
    (folder / "accuracy.md").write_text("\n".join(lines))
    edges = np.array(table["redshift_edges"])
    centres = 0.5 * (edges[1:] + edges[:-1])
    cells = np.array(table["per_bin"])
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True, layout="constrained")
    for column, (axis, title) in enumerate(
        zip(axes, ("median", "95th percentile", "99th percentile"), strict=True)
    ):
        colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(bands)))
        for band, colour in enumerate(colours):
            axis.semilogy(centres, cells[:, band, column], "o-", ms=3, lw=1, color=colour, label=bands[band])
        axis.set(title=title, xlabel="redshift", ylabel="absolute error [mag]")
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=7, ncol=2, frameon=False)
    figure.savefig(folder / "accuracy.png", dpi=110)
    plt.close(figure)
