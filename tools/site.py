"""What a green build can still get wrong: the finished site, page by page.

python -m tools.site FOLDER
"""

import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from tools import book

# What a browser fetches by itself; plain links to other sites are welcome.
FETCHED = (
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("link", "href"),
)
HARMLESS = {"canonical", "author", "index", "next", "prev", "search"}


def problems(site: Path, names: list[str]) -> list[str]:
    """Everything wrong with the built pages of these names; empty if all is well."""
    found = []
    index = site / "searchindex.js"
    if not index.exists() or index.stat().st_size < 1000:
        found.append("no search index")
    for name in names:
        path = site / f"{name}.html"
        if not path.exists() or path.stat().st_size < 5000:
            found.append(f"{name}: page missing or empty")
            continue
        page = BeautifulSoup(path.read_text(), "html.parser")
        found += [f"{name}: {problem}" for problem in on_page(page, path, site)]
    return found


def on_page(page: BeautifulSoup, path: Path, site: Path) -> list[str]:
    """Problems of one page."""
    found = fetches(page, path)
    article = page.find("article") or page
    found += images(article)
    for link in article.find_all("a", href=True):
        if not reachable(link["href"], path, page):
            found.append(f"a link to nowhere, {link['href']}")
    return found + text(article)


def fetches(page: BeautifulSoup, path: Path) -> list[str]:
    """What the page would fetch from another host, or in vain."""
    found = []
    for kind, attribute in FETCHED:
        for tag in page.find_all(kind, **{attribute: True}):
            parts = urlsplit(tag[attribute])
            fetched = not HARMLESS & set(tag.get("rel", []))
            if parts.netloc and fetched:
                found.append(f"a request to an outside host, {tag[attribute][:80]}")
            elif (
                fetched and not parts.scheme and not (path.parent / parts.path).exists()
            ):
                found.append(f"a request for a missing file, {parts.path}")
    return found


def images(article: Tag) -> list[str]:
    """Images that say nothing to who cannot see them."""
    found = []
    for image in article.find_all("img"):
        source, alt = image["src"], image.get("alt", "")
        name = Path(urlsplit(source).path).name
        if len(alt) < 20 or name[:20] in alt:
            found.append(f"an image without alt text: {alt[:40]!r}")
    return found


def reachable(href: str, path: Path, page: BeautifulSoup) -> bool:
    """Whether a link on the page leads to a file, and its anchor to a place in it."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        return True
    target = path.parent / unquote(parts.path) if parts.path else path
    if not target.exists():
        return False
    if not parts.fragment or target.suffix != ".html":
        return True
    there = page if target == path else BeautifulSoup(target.read_text(), "html.parser")
    return there.find(id=unquote(parts.fragment)) is not None


def text(article: Tag) -> list[str]:
    """Markdown or maths that reached the page as raw text."""
    article = BeautifulSoup(str(article), "html.parser")
    for tag in article.select("pre, code, script, style, .math, .headerlink"):
        tag.decompose()
    found = []
    for paragraph in article.find_all(["p", "td", "li", "h1", "h2", "h3"]):
        words = paragraph.get_text().strip()
        if words.startswith("|"):
            found.append(f"a table that is a paragraph: {words[:40]!r}")
        if "$" in words:
            found.append(f"raw maths: {words[:60]!r}")
    return found


def main(folder: str) -> int:
    found = problems(Path(folder), book.names())
    print("\n".join(found) or f"{len(book.names())} pages, no problem found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
