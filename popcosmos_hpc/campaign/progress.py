"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 30.0


def format_duration(seconds: float) -> str:
    """A duration as people write it.

    >>> format_duration(3725)
    '1 h 2 min'
    """
    if seconds != seconds or seconds == float("inf"):
        return "unknown"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class Progress:
    """Counts galaxies.

    Args:
        total: galaxies of the run.
        done: galaxies finished before.
        activity: what happens to them.
    """

    def __init__(self, total: int, done: int, activity: str = "fitting"):
        self._total, self._done, self._start = total, done, done
        self._begin = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="galaxy", desc=activity, smoothing=0.05)
        logger.info("%d of %d galaxies done; %s", done, total, activity)

    def advance(self, count: int) -> None:
        """Count finished galaxies; negative where an attempt has to be repeated."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        self.tick()

    def tick(self) -> None:
        """Write a line if the last one is old; called often, also when nothing finishes."""
        now = time.monotonic()
        if self._bar is not None or now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = (self._done - self._start) / (now - self._begin)
        if rate <= 0:
            since = format_duration(now - self._begin)
            logger.info("%d of %d galaxies done, none within %s", self._done, self._total, since)
            return
        left = format_duration((self._total - self._done) / rate)
        logger.info("%d of %d galaxies done, %.3g per second, %s left", self._done, self._total, rate, left)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
