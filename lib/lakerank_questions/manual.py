"""Python's manual, as Debian packages it: the package, pinned by hash, and the sections of its pages."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lxml import html

from lakerank.errors import DependencyError, StorageError

PACKAGE, VERSION = "python3.11-doc", "3.11.2-6+deb12u9"
SHA256 = "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be"

#: What is read of the manual: what is written to be read through. Left out: the library's entries and what is new.
PARTS = ("distributing", "extending", "faq", "howto", "installing", "reference", "tutorial", "using")

#: A document is the beginning of its section: whole blocks up to so many characters, at least one.
LONGEST = 600

#: Of fewer words, a section has none: "See the next question." answers no question.
FEWEST_WORDS = 6

_HTML = "usr/share/doc/python3.11/html/"
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


@dataclass(frozen=True, slots=True)
class Section:
    """A section without its heading and without the sections inside it. `name`: part/page#anchor."""

    name: str
    heading: str
    text: str


def fetch(folder: Path) -> Path:
    """The package in `folder`, got by apt-get unless it is there.

    Raises:
        DependencyError: apt-get is missing or does not offer this version.
        StorageError: the package is not the pinned one.
    """
    package = folder / f"{PACKAGE}_{VERSION}_all.deb"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", "-q", f"{PACKAGE}={VERSION}"], folder)
    actual = hashlib.sha256(package.read_bytes()).hexdigest()
    if actual != SHA256:
        raise StorageError(f"{package}: SHA-256 is {actual}, expected {SHA256}; delete it and fetch it again")
    return package


def read_pages(package: Path) -> Mapping[str, bytes]:
    """The pages of PARTS by their names, such as faq/design, sorted."""
    pages = {}
    with tarfile.open(fileobj=io.BytesIO(_run(["dpkg-deb", "--fsys-tarfile", str(package)], package.parent))) as files:
        for member in files:
            name = member.name.removeprefix("./").removeprefix(_HTML)
            if name.endswith(".html") and name.partition("/")[0] in PARTS and (file := files.extractfile(member)):
                pages[name.removesuffix(".html")] = file.read()
    return dict(sorted(pages.items()))


def read_sections(name: str, page: bytes) -> Iterator[Section]:
    """The sections of a page that have a text of their own, in its order; its table of contents is none."""
    tree = html.fromstring(page.decode())
    for left_out in tree.xpath('//a[@class="headerlink"] | //*[contains(@class, "contents")]'):
        left_out.drop_tree()
    for section in tree.xpath("//section[@id]"):
        heading = next((child for child in section if child.tag in _HEADINGS), None)
        blocks = [_text(child) for child in section if child.tag not in ("section", *_HEADINGS)]
        text = _beginning([block for block in blocks if block])
        if heading is not None and len(text.split()) >= FEWEST_WORDS:
            yield Section(f"{name}#{section.get('id')}", _text(heading), text)


def _text(element: html.HtmlElement) -> str:
    """The text of an element on one line; of an example of code, as it stands."""
    if element.tag is html.etree.Comment:
        return ""
    text, classes = element.text_content(), element.xpath("./@class | ./div/@class")
    return text.strip("\n") if "highlight" in classes else " ".join(text.split())


def _beginning(blocks: list[str]) -> str:
    kept = blocks[:1]
    for block in blocks[1:]:
        if len("\n".join([*kept, block])) > LONGEST:
            break
        kept.append(block)
    return "\n".join(kept)


def _run(command: list[str], folder: Path) -> bytes:
    """What a program prints."""
    try:
        return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603  no shell
    except FileNotFoundError as error:
        raise DependencyError(f"{command[0]} is not installed: the manual is a package of Debian 12") from error
    except subprocess.CalledProcessError as error:
        advice = "an older version of a Debian package is in Debian's snapshot archive"
        raise DependencyError(f"{' '.join(command)} failed with status {error.returncode}; {advice}") from error
