"""A stand-in for modprobe on simulated hosts, which have the outer machine's kernel.

    modprobe nbd [nbds_max=N]

No module is loaded. For `nbd` the device files appear that it would make; they are plain files.
Other modules are refused.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CONFIGURATION = Path("/etc/modprobe.d")
BY_DEFAULT = 16


def devices(words: list[str]) -> int:
    """How many there shall be: from the command line, else from modprobe.d."""
    lines = [path.read_text() for path in sorted(CONFIGURATION.glob("*.conf"))]
    options = re.findall(r"^\s*options\s+nbd\s+(.*)$", "\n".join(lines), re.MULTILINE)
    found = re.findall(r"\bnbds_max=(\d+)", " ".join([*options, *words]))
    return int(found[-1]) if found else BY_DEFAULT


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if not words or words[0] != "nbd":
        sys.exit(f"modprobe (stand-in): module {' '.join(words)} is not known here")
    for number in range(devices(words[1:])):
        Path(f"/dev/nbd{number}").touch()


if __name__ == "__main__":
    main()
