"""Write docs/man from the help of the commands: run it when a help text has changed.

scripts/manpages.py [FOLDER]
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from plxsh.manual import Manual  # noqa: E402


def release() -> tuple[str, str]:
    """Return the version, and its date if it is released."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    heading = rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$"
    dated = re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    return version, dated[1] if dated else ""


def write(folder: Path) -> None:
    """Write every page into a folder, and remove pages that are none any more."""
    pages = Manual(*release()).pages()
    for old in folder.glob("*.[1-8]"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/man")
