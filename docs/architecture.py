"""Draws the picture of the design from the code: the layers of tests/test_layers.py, and which of them import which.

python docs/architecture.py    # writes docs/images/architecture.svg; a test says when that is due
"""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
LAYERS = {
    "recipes": "one script per experiment, and its configurations",
    "experiments": "what the recipes are made of; the embedded world",
    "online": "labels that are collected while PPO runs",
    "trainers": "the reward trainer, PPO, and their parts",
    "labelers": "simulated labellers, people and their page",
    "metrics": "what is measured on models and labels",
    "parts": "policy and value, the reward model, the reward rule",
    "base": "formulas, tasks, β, the optimiser",
}
COLOURS = ("#37474f", "#5e35b1", "#3949ab", "#00796b", "#ad1457", "#ef6c00", "#2e7d32", "#546e7a")
WIDTH, LEFT, RIGHT, CHIP, LINE = 940, 20, 730, 26, 32  # pixels
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#263238"'


def edges(layers: dict) -> list[tuple[str, str]]:
    """Which layer imports which other; the flat list of names, which only repeats, is left out."""
    names = list(LAYERS)
    found = set()
    for module, source, is_package in layers["project_modules"]():
        here = layers["layer_of"](module)
        there = {layers["layer_of"](name) for name in layers["own_imports"](module, source, is_package)}
        found |= {(here, layer) for layer in there - {here, "flat names"} if here != "flat names"}
    return sorted(found, key=lambda pair: [names.index(name) for name in pair])


def members(layers: dict, layer: str) -> list[str]:
    """The files and folders of a layer, folders with a stroke behind them."""
    folders = {path.name for path in [*(ROOT / "trl_ziegler").iterdir(), *ROOT.iterdir()] if path.is_dir()}
    return sorted(f"{name}/" if name in folders else name for name in layers["LAYERS"][layer])


def rows_of(chips: list[str]) -> list[list[tuple[str, int, int]]]:
    """Chips in lines, each with its left edge and width."""
    rows: list[list[tuple[str, int, int]]] = [[]]
    x = LEFT + 14
    for chip in chips:
        width = round(7.1 * len(chip)) + 18
        if x + width > RIGHT - 10:
            rows.append([])
            x = LEFT + 14
        rows[-1].append((chip, x, width))
        x += width + 8
    return rows


def band(layer: str, colour: str, chips: list[str], top: int) -> tuple[list[str], int]:
    """The drawing of one layer, and its height."""
    rows = rows_of(chips)
    height = 38 + LINE * len(rows)
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{RIGHT - LEFT}" height="{height}" rx="8" fill="#fff" stroke="{colour}"/>',
        f'<text x="{LEFT + 14}" y="{top + 22}" font-weight="600" fill="{colour}">{layer}</text>',
        f'<text x="{LEFT + 120}" y="{top + 22}" font-size="12" fill="#607d8b">{LAYERS[layer]}</text>',
    ]
    for i, row in enumerate(rows):
        y = top + 32 + LINE * i
        for chip, x, width in row:
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{CHIP}" rx="5" fill="#eceff1"/>')
            parts.append(f'<text x="{x + 9}" y="{y + 17}" font-family="monospace" font-size="11.5">{chip}</text>')
    return parts, height


def arc(i: int, j: int, places: list[tuple[int, int]]) -> str:
    """On the right, from layer `i` down to layer `j`, which it imports; `places` are tops and heights."""
    (top, height), (top_below, height_below) = places[i], places[j]
    start = round(top + height * (0.45 + 0.5 * (j - i) / len(places)))
    end = round(top_below + height_below * (0.1 + 0.5 * i / len(places)))
    reach = RIGHT + 26 + 30 * (j - i)
    curve = f"M{RIGHT} {start}C{reach} {start} {reach} {end} {RIGHT + 8} {end}"
    return f'<path d="{curve}" fill="none" stroke="{COLOURS[i]}" stroke-width="1.6" marker-end="url(#tip{i})"/>'


def tip(i: int, colour: str) -> str:
    size = 'viewBox="0 0 10 10" refX="6" refY="5" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9"'
    return f'<marker id="tip{i}" {size} orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'


def draw() -> str:
    """The picture as SVG text."""
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))
    body, places, top = [], [], 20
    for layer, colour in zip(LAYERS, COLOURS, strict=True):
        parts, height = band(layer, colour, members(layers, layer), top)
        body += parts
        places.append((top, height))
        top += height + 14
    names = list(LAYERS)
    body += [arc(names.index(here), names.index(there), places) for here, there in edges(layers)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 6}" role="img" {FONT}>',
        "<title>Layers of the package; an arc leads from a layer to one that it imports</title>",
        f"<defs>{''.join(tip(i, colour) for i, colour in enumerate(COLOURS))}</defs>",
        f'<rect width="{WIDTH}" height="{top + 6}" rx="10" fill="#fafafa"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
