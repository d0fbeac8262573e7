"""What a page of the report is made of: sections that hold paragraphs, figures and tables."""

from dataclasses import dataclass

import numpy as np

from popcosmos_hpc.errors import Status

SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


@dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    Args:
        source: data URI of an SVG or PNG.
        caption: what is shown and how to read it.
        alt: one sentence for readers who cannot see it.
        wide: whether it needs the full width of the page.
    """

    source: str
    caption: str
    alt: str
    wide: bool = True

    @property
    def kind(self) -> str:
        """Name of the block for the template."""
        return "figure"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        header: one title per column.
        rows: cells as text; the first column is a row's name.
        caption: what is shown and how to read it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def kind(self) -> str:
        """Name of the block for the template."""
        return "table"


@dataclass(frozen=True)
class Text:
    """A paragraph, a note that something is missing, or preformatted text.

    Args:
        text: plain text.
        style: `paragraph`, `note` or `code`.
    """

    text: str
    style: str = "paragraph"

    @property
    def kind(self) -> str:
        """Name of the block for the template."""
        return "text"


@dataclass(frozen=True)
class Section:
    """A titled part of the page.

    Args:
        anchor: its id in the page.
        title: its heading.
        blocks: figures, tables and texts in order.
    """

    anchor: str
    title: str
    blocks: tuple[Figure | Table | Text, ...]


def number(value: float, digits: int = 3) -> str:
    """A number for a table: plain digits, n/a where it is not finite.

    >>> number(1234.5678), number(0.00123), number(float("nan"))
    ('1,235', '0.00123', 'n/a')
    """
    if not np.isfinite(value):
        return "n/a"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"


def percent(part: float | np.integer, whole: float) -> str:
    """A fraction in percent, n/a of nothing.

    >>> percent(1, 8), percent(1, 0)
    ('12.5 %', 'n/a')
    """
    return f"{100 * part / whole:.1f} %" if whole else "n/a"


def in_words(status: Status) -> str:
    """A status for running text.

    >>> in_words(Status.NOT_CONVERGED), in_words(Status.OK)
    ('not converged', 'OK')
    """
    return "OK" if status is Status.OK else status.name.lower().replace("_", " ")


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "block"), plural(2000, "block")
    ('1 block', '2,000 blocks')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(42.2), duration(3723.0)
    ('42 s', '1 h 02 min')
    """
    if not np.isfinite(seconds):
        return "n/a"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
