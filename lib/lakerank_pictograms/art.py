"""Pictograms drawn: icon sets' SVG rasterised to small PNG files."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lakerank.errors import requires
from lakerank_pictograms.concepts import SHARED_FLAGS, concept_key
from lakerank_pictograms.packages import Packages

#: Side of a picture in pixels: 3 × 3 visual tokens of 28 pixels.
SIDE = 84

#: style → package; the first two name their icons' code points.
STYLES: Mapping[str, str] = {
    "twemoji": "@iconify-json/twemoji",
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "emojione": "@iconify-json/emojione",
    "fluent": "@iconify-json/fluent-emoji-flat",
}

#: The style that training never sees.
UNSEEN_STYLE = "fluent"


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing of a concept. `png`: SIDE × SIDE pixels, RGB on white."""

    concept: str
    style: str
    png: bytes


class ArtSet:
    """One icon set: which concepts it draws, and their pictures."""

    def __init__(self, packages: Packages, style: str) -> None:
        self.style = style
        self._icons: dict[str, Any] = packages.read_json(STYLES[style], "icons.json")
        names = packages.read_json(STYLES[style], "chars.json") or _names_by_code_point(packages)
        drawn = self._icons["icons"].keys() | self._icons.get("aliases", {}).keys()
        # Sorted, so that of two spellings of a code point sequence the same one always wins.
        self._names = {concept_key(key): name for key, name in sorted(names.items()) if name in drawn}

    def concepts(self) -> Collection[str]:
        """Keys of the concepts this set draws."""
        return self._names.keys()

    def picture(self, concept: str) -> Picture:
        """Draw one concept. Raises KeyError if the set has no such icon."""
        return Picture(concept, self.style, rasterise(self._svg(self._names[concept])))

    def _svg(self, name: str) -> str:
        """A whole SVG document of an icon, following aliases and their flips."""
        flips: set[str] = set()
        while name not in self._icons["icons"]:
            alias = self._icons["aliases"][name]
            flips ^= {flip for flip in ("hFlip", "vFlip") if alias.get(flip)}
            name = alias["parent"]
        icon = self._icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(side, self._icons[side]) for side in ("width", "height"))
        scale_x, scale_y = (-1 if "hFlip" in flips else 1), (-1 if "vFlip" in flips else 1)
        shift_x, shift_y = (2 * left + width if scale_x < 0 else 0), (2 * top + height if scale_y < 0 else 0)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
            f'<g transform="translate({shift_x} {shift_y}) scale({scale_x} {scale_y})">{icon["body"]}</g></svg>'
        )


def rasterise(svg: str) -> bytes:
    """Draw an SVG document SIDE × SIDE pixels large on white, as PNG."""
    with requires("pictograms", "resvg-py draws the pictograms"):
        import resvg_py
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="#ffffff", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(drawn))) as image:
        square = image.convert("RGB")
    if square.size != (SIDE, SIDE):  # an icon wider than high, or the reverse
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        square.thumbnail((SIDE, SIDE))
        canvas.paste(square, ((SIDE - square.width) // 2, (SIDE - square.height) // 2))
        square = canvas
    buffer = io.BytesIO()
    square.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def pictures(packages: Packages, styles: Collection[str], concepts: Collection[str]) -> Iterator[Picture]:
    """Every picture of the concepts in the styles, style by style, in the concepts' order."""
    for style in styles:
        art = ArtSet(packages, style)
        for concept in concepts:
            if concept in art.concepts():
                yield art.picture(concept)


def distinct(drawn: Sequence[Picture]) -> list[Picture]:
    """Each picture once: one of several concepts (families in silhouette, shared flags) is the first's."""
    owners: dict[bytes, Picture] = {}
    for picture in sorted(drawn, key=lambda picture: picture.concept not in SHARED_FLAGS):
        owners.setdefault(picture.png, picture)
    return [picture for picture in drawn if owners[picture.png] is picture]


def _names_by_code_point(packages: Packages) -> dict[str, str]:
    """Icon names of the sets that list their code points, for those that do not: the naming is shared.

    A name of two concepts ("cricket" is an insect and a game) is left out.
    """
    names: dict[str, str] = {}
    for style in ("noto", "twemoji"):
        names |= {concept_key(key): name for key, name in packages.read_json(STYLES[style], "chars.json").items()}
    counts = Counter(names.values())
    return {key: name for key, name in names.items() if counts[name] == 1}
