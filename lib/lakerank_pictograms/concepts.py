"""Concepts of pictograms, their names in many languages, and their split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lakerank_pictograms.packages import Packages

Split = Literal["train", "validation", "test"]

#: Languages whose texts training never pairs with an image: one each in Latin, Cyrillic and Devanagari script.
TEXT_ONLY_LANGUAGES = ("hi", "sv", "uk")

_VALIDATION_SHARE = 0.04
_TEST_SHARE = 0.12
_PEOPLE = frozenset({"1f468", "1f469", "1f9d1"})  # man, woman, person
_CHILDREN = frozenset({"1f466", "1f467", "1f9d2"})
_MARKS = frozenset({"fe0f", "200d", "2640", "2642", "27a1"})  # presentation, joiner, gender signs, direction
_CLOCKS = range(0x1F550, 0x1F568)
_HOLDING_HANDS = frozenset({"1f46b", "1f46c", "1f46d"})

#: Countries whose flag some territory flies too: the same picture must not be in two splits.
SHARED_FLAGS = {
    "1f1e6-1f1fa": "1f1ed-1f1f2",  # Australia: Heard & McDonald Islands
    "1f1e7-1f1fb": "1f1f8-1f1ef",  # Bouvet Island: Svalbard & Jan Mayen
    "1f1ea-1f1f8": "1f1ea-1f1e6",  # Spain: Ceuta & Melilla
    "1f1eb-1f1f7": "1f1e8-1f1f5",  # France: Clipperton Island
    "1f1ee-1f1f4": "1f1e9-1f1ec",  # British Indian Ocean Territory: Diego Garcia
    "1f1f2-1f1eb": "1f1e8-1f1f5",  # St. Martin: Clipperton Island
    "1f1f3-1f1f4": "1f1f8-1f1ef",  # Norway: Svalbard & Jan Mayen
    "1f1fa-1f1f8": "1f1fa-1f1f2",  # United States: U.S. Outlying Islands
}


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji without skin tone. `key` is its code points in hex, without presentation selectors: "1f436"."""

    key: str
    emoji: str
    name: str
    group: str
    subgroup: str

    @property
    def split(self) -> Split:
        """Which split the concept belongs to, in every language and style."""
        return split_of(self.key)


def concept_key(code_points: str) -> str:
    """Normal form of a dash-separated code point sequence: "2764-FE0F" → "2764"."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def family_of(key: str) -> str:
    """Name shared by emoji that differ by gender, direction, a clock's hands or name alone: they stay in one split."""
    key = SHARED_FLAGS.get(key, key)
    parts = [part for part in key.split("-") if part not in _MARKS]
    if not parts:  # the gender signs and the arrow themselves
        return key
    if len(parts) == 1:
        if int(parts[0], 16) in _CLOCKS:
            return "clock"
        return "holding-hands" if parts[0] in _HOLDING_HANDS else parts[0]
    if parts[0] not in _PEOPLE | _CHILDREN:
        return "-".join(parts)
    return _people_family(parts)


def split_of(key: str) -> Split:
    """Split of a concept, by a hash of its family: about 84 % train, 4 % validation, 12 % test."""
    position = unit_hash(f"lakerank-split:{family_of(key)}")
    if position < _TEST_SHARE:
        return "test"
    return "validation" if position < _TEST_SHARE + _VALIDATION_SHARE else "train"


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the only randomness in the pictogram lakes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def chosen(items: Collection[str], count: int, salt: str) -> list[str]:
    """Up to `count` of the items in an order that depends on the salt alone."""
    return sorted(items, key=lambda item: unit_hash(f"{salt}\n{item}"))[:count]


def read_concepts(packages: Packages) -> list[Concept]:
    """Every emoji of emojibase that has a group, in Unicode's order; lone letters and skin tones are left out."""
    meta = packages.read_json("emojibase-data", "meta/groups.json")
    rows: Sequence[dict[str, object]] = packages.read_json("emojibase-data", "en/data.json")
    kept = [row for row in rows if row.get("group") is not None and meta["groups"][str(row["group"])] != "component"]
    kept.sort(key=lambda row: int(str(row["order"])))
    return [
        Concept(
            key=concept_key(str(row["hexcode"])),
            emoji=str(row["emoji"]),
            name=str(row["label"]),
            group=meta["groups"][str(row["group"])],
            subgroup=meta["subgroups"][str(row["subgroup"])],
        )
        for row in kept
    ]


def _people_family(parts: Sequence[str]) -> str:
    """Family of a sequence of several code points that starts with a person."""
    rest = parts[1:]
    if "1f48b" in rest:
        return "1f48f"  # kiss
    if "2764" in rest:
        return "1f491"  # couple with heart
    if "1f91d" in rest:
        return "holding-hands"
    if any(part in _PEOPLE | _CHILDREN for part in rest):
        return "1f46a"  # family
    return "role-" + "-".join(rest)


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
