#!/bin/sh
# Write requirements.lock again: what the services run with, each release named by its hashes.
#
#   scripts/lock.sh
#
# The newest releases that pyproject.toml allows, one for all versions of Python. uv finds them;
# it is fetched for this run only. Then the lock is tried: each Python and each processor that is
# promised gets all it needs as wheels, so that no host needs a compiler.
set -eu
cd "$(dirname "$0")/.."

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
.venv/bin/python -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
uv="$place/venv/bin/uv --quiet --no-config --cache-dir $place/cache"

$uv pip compile --universal --python-version 3.11 --fork-strategy fewest --upgrade \
    --generate-hashes --custom-compile-command 'make lock' \
    --output-file "$place/requirements.lock" pyproject.toml >/dev/null

for processor in x86_64 aarch64; do
    for python in 3.11 3.12 3.13; do
        echo "lock: trying Python $python on $processor"
        $uv pip install --require-hashes --no-build --python-version "$python" \
            --python-platform "$processor-manylinux_2_28" --target "$place/$processor-$python" \
            --requirement "$place/requirements.lock"
    done
done
cp "$place/requirements.lock" requirements.lock
