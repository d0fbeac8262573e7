"""Whether other samplers agree: a random fraction of the galaxies, fitted twice."""

import numpy as np
import pyarrow as pa

from popcosmos_hpc.campaign.audit import read_audit
from popcosmos_hpc.errors import Status
from popcosmos_hpc.report import figures
from popcosmos_hpc.report.figures import BLUE, GREY, INK
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import SIGMA, Figure, Section, Table, Text, number

_FAR, _MANY = 0.25, 5.0  # standard deviations; Monte Carlo errors
_MAX_LISTED = 20
_USABLE = (Status.OK, Status.POOR_FIT)


def audit_section(run: RunData) -> Section:
    """Agreement in means, widths and evidence, auditor by auditor, and the galaxies where there is none."""
    tables = read_audit(run.run_dir)
    if not tables:
        note = "No galaxy was fitted by a second sampler: `audit` in the configuration asks for it."
        return Section("audit", "Audit", (Text(note, "note"),))
    blocks: list[Figure | Table | Text] = [_agreement(tables), _pulls(tables)]
    if listed := _listed(tables):
        blocks.append(listed)
    return Section("audit", "Audit", tuple(blocks))


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Columns of the galaxies that both samplers vouch for; lists as (galaxy, param)."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        is_list = pa.types.is_list(column.type)
        columns[name] = np.array(column.to_pylist(), float) if is_list else column.to_numpy()
    both = np.isin(columns["status"], _USABLE) & np.isin(columns["run_status"], _USABLE)
    return {name: values[both] for name, values in columns.items()}


def _disagree(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Galaxies (galaxy,) with a mean that is off by more than both samplers allow."""
    shift = np.abs(columns["shift"])
    return np.any((shift > _FAR) & (shift > _MANY * columns["shift_error"][:, None]), axis=1)


def _agreement(tables: dict[str, pa.Table]) -> Table:
    rows = []
    for name, table in tables.items():
        both = _columns(table)
        pull = both["shift"] / both["shift_error"][:, None]
        evidence = both["log_evidence_difference"]
        evidence = evidence[np.isfinite(evidence)]
        rows.append(
            (
                name,
                f"{table.num_rows:,}",
                f"{len(pull):,}",
                number(float(np.sqrt(np.mean(pull**2)))) if pull.size else "n/a",
                number(float(np.mean(both["width_ratio"]))) if pull.size else "n/a",
                number(float(np.sqrt(np.mean(evidence**2)))) if evidence.size else "n/a",
                f"{_disagree(both).sum():,}" if pull.size else "n/a",
                number(float(np.mean(table["seconds"].to_numpy()))),
            )
        )
    header = (
        "auditor", "galaxies", "both vouch", "rms shift / error", "width run / auditor", "rms Δ ln Z",
        "disagree", "s per galaxy",
    )  # fmt: skip
    caption = (
        "Shifts are differences of posterior means over all parameters, in units of the Monte Carlo error "
        "that both effective sizes leave: 1 if both tell the truth. Galaxies disagree if a mean is off by "
        f"more than {_MANY:g} such errors and {_FAR:g} {SIGMA}."
    )
    return Table(header, tuple(rows), caption)


def _pulls(tables: dict[str, pa.Table]) -> Figure:
    with figures.canvas(7.0, 2.6) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
        grid = np.linspace(-5, 5, 200)
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            both = _columns(table)
            pull = np.ravel(both["shift"] / both["shift_error"][:, None])
            bins = np.linspace(-5, 5, 41)
            axes.hist(np.clip(pull, -4.99, 4.99), bins=bins, density=True, color=BLUE, alpha=0.7)
            axes.plot(grid, np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi), color=INK, linewidth=1)
            axes.axvline(0.0, color=GREY, linewidth=0.6)
            axes.set(xlabel="shift / error", title=f"run against {name}")
        panels[0].set_ylabel("density")
        return figures.encode(
            figure,
            "Shifts of all parameters of the galaxies that both samplers vouch for, in units of their Monte "
            "Carlo errors; the line is what errors that are right would give. Outermost bins hold what lies "
            "beyond.",
            "Histograms of shifts between the run and its auditors.",
        )


def _listed(tables: dict[str, pa.Table]) -> Table | None:
    rows = []
    for name, table in tables.items():
        both = _columns(table)
        params = (table.schema.metadata or {}).get(b"param", b"").decode().split(",")
        for i in np.flatnonzero(_disagree(both)):
            worst = int(np.argmax(np.abs(both["shift"][i])))
            rows.append(
                (
                    str(both["object_id"][i]),
                    name,
                    params[worst] if worst < len(params) else str(worst),
                    f"{both['shift'][i, worst]:+.2f} {SIGMA}",
                    number(both["run_ess"][i]),
                    number(both["ess"][i]),
                )
            )
    if not rows:
        return None
    header = ("object_id", "auditor", "parameter", "shift", "effective draws of run", "of auditor")
    caption = f"Galaxies on which run and auditor disagree ({len(rows):,}; at most {_MAX_LISTED} shown)."
    return Table(header, tuple(rows[:_MAX_LISTED]), caption)
