"""Small drawings as SVG text: the blocks of a model with the skipped ones, and one cell's learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _GAP, _EACH_ROW = 66, 34, 16, 12


def block_diagram(blocks: Sequence[str], skipped: Sequence[str]) -> str:
    """The blocks of each stream from left to right; a skipped one is dashed and bridged by its shortcut.

    Rows break after 12 blocks. A stream is what stands before a block's dot (`joint.3`).
    """
    streams: dict[str, list[str]] = {}
    for block in blocks:
        streams.setdefault(block.partition(".")[0], []).append(block)
    rows = [
        (stream, names[start : start + _EACH_ROW])
        for stream, names in streams.items()
        for start in range(0, len(names), _EACH_ROW)
    ]
    width = 12 + max(len(names) for _, names in rows) * (_WIDTH + _GAP)
    row_height = _HEIGHT + 44
    parts = []
    for number, (stream, names) in enumerate(rows):
        top = 26 + number * row_height
        middle = top + _HEIGHT / 2
        for place, name in enumerate(names):
            left = 12 + place * (_WIDTH + _GAP)
            right = left + _WIDTH
            parts.append(f'<path d="M{left - _GAP + 2} {middle} H{left}" stroke="#444" fill="none"/>')
            gone = name in skipped
            look = (
                'fill="#fff" stroke="#d55e00" stroke-dasharray="5 3"'
                if gone
                else 'fill="#e3ecf5" stroke="#0072b2"'
            )
            color = "#b04a00" if gone else "#1c1c1c"
            parts.append(
                f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" {look}/>'
                f'<text x="{left + _WIDTH / 2}" y="{middle + 4}" text-anchor="middle" fill="{color}">'
                f"{escape(name)}</text>"
            )
            if gone:
                parts.append(
                    f'<path d="M{left - 6} {middle} C{left} {top - 22}, {right} {top - 22}, {right + 6} {middle}"'
                    ' fill="none" stroke="#d55e00" stroke-width="2"/>'
                    f'<text x="{left + _WIDTH / 2}" y="{top + _HEIGHT + 14}" text-anchor="middle" fill="#b04a00">'
                    "skipped</text>"
                )
        if number == 0 or rows[number - 1][0] != stream:
            parts.append(
                f'<text x="12" y="{top + _HEIGHT + 30}" fill="#595959">{escape(stream)}: '
                f"{len(streams[stream])} blocks, "
                f"{sum(block in skipped for block in streams[stream])} skipped</text>"
            )
    height = 26 + len(rows) * row_height
    label = f"{len(blocks)} blocks; skipped: {', '.join(skipped) or 'none'}"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}" '
        f'font-size="11" font-family="sans-serif">{"".join(parts)}</svg>'
    )


def small_curve(values: Mapping[int, float], name: str) -> str:
    """A metric by epoch, with its first and last figure."""
    epochs = sorted(values)
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    reach = (epochs[-1] - epochs[0]) or 1

    def at(epoch: int) -> tuple[float, float]:
        return 36 + 190 * (epoch - epochs[0]) / reach, 62 - 48 * (values[epoch] - low) / span

    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, epochs))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#0072b2"/>' for x, y in map(at, epochs))
    texts = "".join(
        f'<text x="{x:.1f}" y="{y - 6:.1f}" text-anchor="middle">{values[epoch]:.4g}</text>'
        for epoch in dict.fromkeys((epochs[0], epochs[-1]))
        for x, y in [at(epoch)]
    )
    return (
        f'<svg viewBox="0 0 262 84" width="262" role="img" aria-label="{escape(name)} by epoch" font-size="10" '
        f'font-family="sans-serif" fill="#1c1c1c"><polyline points="{points}" fill="none" stroke="#0072b2" '
        f'stroke-width="1.5"/>{dots}{texts}<text x="36" y="80">{escape(name)}, epochs {epochs[0]} to '
        f"{epochs[-1]}</text></svg>"
    )
