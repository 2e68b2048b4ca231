"""What a 4 KiB overwrite costs in a file that was written in pieces of different sizes.

The page cache keeps a file in units as large as the writes that made it, and a small write
pays for the whole unit. `core.device` writes in pieces of 64 KiB because of this table.

    .venv/bin/python benchmarks/folio.py [FOLDER]
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from typing import Final

SIZE: Final = 256 << 20
WRITES: Final = 20_000


def measure(folder: str, piece: int) -> tuple[float, float]:
    """Return CPU seconds of filling a file in such pieces, and of one 4 KiB overwrite."""
    source = memoryview(random.Random(0).randbytes(piece))
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.process_time()
        for offset in range(0, SIZE, piece):
            os.pwrite(file.fileno(), source, offset)
        filled = time.process_time() - start
        os.fdatasync(file.fileno())
        places = random.Random(1)
        offsets = [places.randrange(SIZE >> 12) << 12 for _ in range(WRITES)]
        start = time.process_time()
        for offset in offsets:
            os.pwrite(file.fileno(), source[:4096], offset)
        return filled, (time.process_time() - start) / WRITES


def main() -> None:
    """Print the table."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    for piece in (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20):
        filled, overwrite = measure(folder, piece)
        print(
            f"pieces of {piece >> 10:5} KiB: fill {SIZE / filled / 1e9:5.2f} GB/s of CPU time,"
            f" 4 KiB overwrite {overwrite * 1e6:5.1f} us"
        )


if __name__ == "__main__":
    main()
