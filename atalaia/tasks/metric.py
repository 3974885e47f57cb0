"""How a figure of a task is shown and compared."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A figure of a task.

    title: of its column; scale, digits: of the number in tables.
    sign: 1 where larger is better, -1 where smaller, 0 where neither: nothing can be chosen by it.
    """

    title: str
    sign: int = 1
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float) -> str:
        """The figure as tables show it."""
        return f"{self.scale * value:.{self.digits}f}"
