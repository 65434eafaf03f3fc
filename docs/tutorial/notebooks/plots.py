"""Draws line plots for the notebooks as inline SVG; no plotting library, and text takes the page's colour."""

from collections.abc import Mapping, Sequence

_COLOURS = ("#2f6fdb", "#d9642c", "#2a9d6a", "#9350c8")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 52, 130, 14, 38
Points = Sequence[tuple[float, float]]


class Lines:
    """Line plot. ``series``: sequences of (x, y) by name; ``band``: a shaded area of (x, low, high)."""

    def __init__(
        self, series: Mapping[str, Points], x: str, y: str, band: Sequence[tuple[float, float, float]] = ()
    ) -> None:
        self.series, self.x, self.y, self.band = series, x, y, band
        points = [point for line in series.values() for point in line]
        points += [(x_of_band, level) for x_of_band, *levels in band for level in levels]
        self._low = tuple(min(column) for column in zip(*points, strict=True))
        self._high = tuple(max(column) for column in zip(*points, strict=True))

    def __repr__(self) -> str:
        return f"{self.y} by {self.x}: {', '.join(self.series)}"

    def _repr_html_(self) -> str:
        parts = [self._shade(), *self._axes()]
        for (name, line), colour in zip(self.series.items(), _COLOURS, strict=False):
            points = " ".join("{:.1f},{:.1f}".format(*self._place(*point)) for point in line)
            end_x, end_y = self._place(*line[-1])
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(_text(end_x + 6, end_y + 4, name, "start", colour))
        box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{self!r}"'
        style = 'style="max-width:100%;height:auto;font:12px sans-serif;color:inherit"'
        return f'<svg {box} width="{_WIDTH}" {style}>{"".join(parts)}</svg>'

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Position of a data point in the SVG."""
        across, up = (
            (value - low) / ((high - low) or 1)
            for value, low, high in zip((x, y), self._low, self._high, strict=True)
        )
        height = _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _TOP + (1 - up) * height

    def _shade(self) -> str:
        upper = [self._place(x, high) for x, _, high in self.band]
        lower = [self._place(x, low) for x, low, _ in reversed(self.band)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower)
        return f'<polygon points="{points}" fill="currentColor" opacity="0.15"/>' if points else ""

    def _axes(self) -> list[str]:
        (left, down), (right, up) = self._place(*self._low), self._place(*self._high)
        path = f"M{left:.1f} {up:.1f}V{down:.1f}H{right:.1f}"
        parts = [f'<path d="{path}" fill="none" stroke="currentColor" opacity="0.5"/>']
        for share in (0.0, 0.5, 1.0):
            x, y = (low + share * (high - low) for low, high in zip(self._low, self._high, strict=True))
            parts.append(_text(self._place(x, y)[0], down + 16, f"{x:.4g}", "middle"))
            parts.append(_text(left - 6, self._place(x, y)[1] + 4, f"{y:.3g}", "end"))
        parts.append(_text((left + right) / 2, down + 32, self.x, "middle"))
        parts.append(_text(left + 6, up + 8, self.y, "start"))
        return parts


def _text(x: float, y: float, text: str, anchor: str, colour: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
