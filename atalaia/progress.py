"""One progress display: a bar with time left on a terminal, a plain line now and then otherwise."""

import sys
import time

from tqdm import tqdm

PLAIN_SECONDS = 15.0  # between two lines when stderr is not a terminal


class Progress:
    """Counts `total` units of work: `with Progress("train", 900, "images", scale=128) as p: p.update(1, loss=0.3)`.

    Args:
      name: what is being done.
      total: number of updates that make the whole.
      unit: what the rate counts, `scale` of them an update.
      initial: updates that an earlier run has done already.
    """

    def __init__(self, name: str, total: int, unit: str = "it", scale: float = 1.0, initial: int = 0):
        self._name, self._total, self._unit, self._scale = name, total, unit, scale
        self._done = self._initial = initial
        self._start = self._last = time.monotonic()
        self._figures: dict[str, float] = {}
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total * scale, initial=initial * scale, desc=name, unit=unit, unit_scale=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._bar is not None:
            self._bar.close()
        elif exc[0] is None:
            self._line()

    def update(self, n: int = 1, **figures: float) -> None:
        """Counts `n` updates; `figures` are shown beside the rate."""
        self._done += n
        self._figures.update(figures)
        if self._bar is not None:
            if figures:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in self._figures.items()}, refresh=False)
            self._bar.update(n * self._scale)
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._line()

    def say(self, text: str) -> None:
        """Prints a line on stdout, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    @property
    def rate(self) -> float:
        """Units a second since this display began."""
        return (self._done - self._initial) * self._scale / max(time.monotonic() - self._start, 1e-9)

    def _line(self):
        self._last = time.monotonic()
        remaining = (self._total - self._done) * self._scale
        left = f"{remaining / self.rate:.0f}" if self.rate else "?" if remaining else "0"
        figures = "".join(f"  {k} {v:.4g}" for k, v in self._figures.items())
        print(
            f"{self._name}: {self._done}/{self._total}  {self.rate:.4g} {self._unit}/s  {left} s left{figures}",
            file=sys.stderr,
            flush=True,
        )
