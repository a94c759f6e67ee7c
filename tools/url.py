"""Move the book to another repository: every address at once.

python -m tools.url https://github.com/me/book
"""

import re
import subprocess
import sys

from tools import book


def main(new: str) -> None:
    """Replace the repository's address in every tracked file.

    Raises ValueError if the new address is not https://HOST/OWNER/NAME.
    """
    if not re.fullmatch(r"https://[\w.-]+/[\w.-]+/[\w.-]+", new):
        raise ValueError(f"got {new!r}, expected https://HOST/OWNER/NAME")
    old = book.repository()
    slugs = [address.split("/", 3)[3] for address in (old, new)]
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=book.ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = book.ROOT / name
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        changed = text.replace(old, new)
        for place in ("blob", "github"):  # Colab and badges name owner and name alone
            changed = changed.replace(f"/{place}/{slugs[0]}", f"/{place}/{slugs[1]}")
        if changed != text:
            path.write_text(changed)
            print(name)


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
