"""What a concept is called: CLDR's names and keywords, and the countries of flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lakerank_pictograms.concepts import Concept
from lakerank_pictograms.packages import Packages

#: language → its script. All have CLDR annotations for nearly every emoji.
SCRIPTS = {
    "ar": "Arabic",
    "bg": "Cyrillic",
    "bn": "Bengali",
    "cs": "Latin",
    "de": "Latin",
    "el": "Greek",
    "en": "Latin",
    "es": "Latin",
    "fa": "Arabic",
    "fi": "Latin",
    "fr": "Latin",
    "he": "Hebrew",
    "hi": "Devanagari",
    "hr": "Latin",
    "hu": "Latin",
    "id": "Latin",
    "it": "Latin",
    "ja": "Japanese",
    "ko": "Korean",
    "mr": "Devanagari",
    "nl": "Latin",
    "no": "Latin",
    "pl": "Latin",
    "pt": "Latin",
    "ro": "Latin",
    "ru": "Cyrillic",
    "sk": "Latin",
    "sv": "Latin",
    "sw": "Latin",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Latin",
    "uk": "Cyrillic",
    "ur": "Arabic",
    "vi": "Latin",
    "zh": "Han",
}


@dataclass(frozen=True, slots=True)
class Label:
    """A concept in one language. `keywords` never repeats the name; `country` is set for countries' flags."""

    concept: Concept
    language: str
    name: str
    keywords: tuple[str, ...]
    country: str | None

    @property
    def description(self) -> str:
        """Name and all keywords in one line, or the name alone."""
        return f"{self.name}: {', '.join(self.keywords)}" if self.keywords else self.name


def read_labels(packages: Packages, concepts: Sequence[Concept]) -> dict[tuple[str, str], Label]:
    """Labels by (concept key, language); a pair that CLDR has no name for is left out."""
    labels = {}
    for language in SCRIPTS:
        annotations = _annotations(packages, language)
        countries = _countries(packages, language)
        for concept in concepts:
            entry = annotations.get(concept.emoji.replace("\ufe0f", ""))
            if entry is None or not entry.get("tts"):
                continue
            name = str(entry["tts"][0])
            keywords = tuple(word for word in entry.get("default", ()) if word.casefold() != name.casefold())
            country = countries.get(region_of(concept.key) or "")
            labels[concept.key, language] = Label(concept, language, name, keywords, country)
    return labels


def region_of(key: str) -> str | None:
    """ISO 3166 code of a country's flag, None for anything else: "1f1e9-1f1ea" → "DE"."""
    points = [int(part, 16) - 0x1F1E6 for part in key.split("-")]
    if len(points) != 2 or not all(0 <= point < 26 for point in points):
        return None
    return "".join(chr(ord("A") + point) for point in points)


def _annotations(packages: Packages, language: str) -> dict[str, Any]:
    """CLDR's entries of a language by emoji without presentation selectors."""
    merged: dict[str, Any] = {}
    for package, folder in (
        ("cldr-annotations-derived-full", "annotationsDerived"),
        ("cldr-annotations-full", "annotations"),
    ):
        loaded = packages.read_json(package, f"{folder}/{language}/annotations.json")[folder]["annotations"]
        merged |= {emoji.replace("\ufe0f", ""): entry for emoji, entry in loaded.items()}
    return merged


def _countries(packages: Packages, language: str) -> dict[str, str]:
    loaded = packages.read_json("cldr-localenames-full", f"main/{language}/territories.json")
    territories: dict[str, str] = loaded["main"][language]["localeDisplayNames"]["territories"]
    return territories
