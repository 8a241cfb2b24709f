"""Draws benchmarks.svg from the tables in README.md that the two benchmarks have printed: how many times as fast ringpipe is.

    python benchmarks/plot.py
"""

import html
import math
import pathlib
import re

HERE = pathlib.Path(__file__).parent
# Pixels: of a line, of the text on the left, of the bars.
LINE, TEXT, WIDTH = 24, 430, 480
LONGEST = 100
TICKS = [1, 2, 5, 10, 20, 50, 100]


def tables():
    """Pairs of a title and rows; a row is what was measured, the ratio, the least and the greatest of a round."""
    pipe, queues = [], []
    for line in (HERE.parent / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (ratio := re.fullmatch(r"([\d.]+)x", cells[3])):
            pipe.append((cells[0], float(ratio[1]), *map(float, cells[4].split("-"))))
        elif len(cells) > 2 and (ratio := re.search(r": ([\d.]+)x \(([\d.]+)-([\d.]+)\)", cells[2])):
            queues.append((cells[0], *map(float, ratio.groups())))
    return [("Pipe, times as fast as multiprocessing.Pipe", pipe), ("Queue, times as fast as multiprocessing.Queue", queues)]


def x(ratio):
    return TEXT + WIDTH * math.log(ratio) / math.log(LONGEST)


def text(at, y, words, anchor="start", weight="normal"):
    return f'<text x="{at:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}">{html.escape(words)}</text>'


def panel(title, rows, top):
    """Lines of SVG, and where the next panel begins."""
    bottom = top + LINE * (len(rows) + 1)
    lines = [text(10, top + 16, title, weight="bold")]
    for tick in TICKS:
        lines.append(f'<line x1="{x(tick):.0f}" y1="{top + LINE}" x2="{x(tick):.0f}" y2="{bottom}" stroke="#ddd"/>')
        lines.append(text(x(tick), bottom + 16, f"{tick}x", "middle"))
    for number, (what, ratio, least, greatest) in enumerate(rows, 1):
        y = top + LINE * number
        lines.append(text(TEXT - 10, y + 17, what, "end"))
        lines.append(f'<rect x="{TEXT}" y="{y + 5}" width="{x(ratio) - TEXT:.0f}" height="{LINE - 8}" fill="#4878a8"/>')
        lines.append(f'<line x1="{x(least):.0f}" y1="{y + LINE / 2 + 1}" x2="{x(greatest):.0f}" y2="{y + LINE / 2 + 1}" stroke="#222" stroke-width="2"/>')
        lines.append(text(x(greatest) + 6, y + 17, f"{ratio:g}x"))
    return lines, bottom + 2 * LINE


def main():
    lines, top = [], 6
    for title, rows in tables():
        drawn, top = panel(title, rows, top)
        lines += drawn
    width = TEXT + WIDTH + 70
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" font-family="sans-serif" font-size="13">'
    (HERE / "benchmarks.svg").write_text("\n".join([opening, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>", ""]))


if __name__ == "__main__":
    main()
