"""A bundle's facts for people."""

from typing import Any


def describe(bundle: Any) -> str:
    """A bundle's facts for people: bands, accuracy, origin; entries that it lacks are left out."""
    facts = bundle.manifest
    lines = [
        f"name        {facts['name']}",
        f"kind        {bundle.kind}",
        f"about       {facts.get('description', '')}",
    ]
    if "redshift_range" in facts:
        lines.append("redshift    {:g} to {:g}".format(*bundle.redshift_range))
    lines += [f"parameters  {', '.join(bundle.space.names)}"] if "space" in facts else []
    lines += [f"bands       {', '.join(bundle.bands)}"] if "bands" in facts else []
    accuracy = facts.get("accuracy")
    if accuracy and bundle.kind != "photometry":
        lines += [
            f"accuracy    {name.replace('_', ' ')} {_figure(value)}" for name, value in accuracy.items()
        ]
    elif accuracy:
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


def _figure(value: Any) -> str:
    """One entry of an accuracy: a number, with its error and what it belongs to where they are given."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_figure, value))
    if not isinstance(value, dict):
        return str(value)
    facts = dict(value)
    text = str(facts.pop("value", ""))
    text += f" ± {facts.pop('standard_error')}" if "standard_error" in facts else ""
    place = [facts.pop(name) for name in ("parameter", "band") if name in facts]
    rest = [f"{name.replace('_', ' ')} {_figure(inner)}" for name, inner in facts.items()]
    inside = ", ".join([*place, *rest])
    return " ".join(part for part in (text, f"({inside})" if inside else "") if part)
