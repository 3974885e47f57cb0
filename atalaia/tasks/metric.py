"""How a figure of a task is shown and compared."""

from typing import NamedTuple


class Metric(NamedTuple):
    """title: of its column; sign: 1 where larger is better, else -1; scale, digits: of the number in tables."""

    title: str
    sign: int = 1
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float) -> str:
        """The figure as tables show it."""
        return f"{self.scale * value:.{self.digits}f}"
