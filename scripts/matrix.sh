#!/bin/sh
# The tests of the Ansible collection with other versions of ansible-core and Python than those
# of .venv: the oldest that the collection supports, the newest, and those between.
#
#   scripts/matrix.sh [CORE:PYTHON...]   such as 2.17:3.12; without any, all
#
# Each has an environment of its own in .venv/matrix. Building one takes three minutes.
set -eu
cd "$(dirname "$0")/.."

TESTS="tests/ansible/test_answers.py tests/ansible/test_collection.py
    tests/ansible/test_modules.py tests/ansible/test_playbooks.py tests/ansible/test_plugins.py"

# build NAME CORE PYTHON: make one environment, which runs the project from this checkout.
build() {
    [ ! "$1/.stamp" -nt pyproject.toml ] || return 0
    echo "matrix: building $1"
    rm -rf "$1"
    "python$3" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
        "ansible-core==$2.*" ansible-lint antsibull-changelog antsibull-docs mock pytest-mock
    touch "$1/.stamp"
}

[ $# -gt 0 ] || set -- 2.17:3.11 2.17:3.12 2.18:3.12 2.19:3.13 2.20:3.13 2.21:3.12 2.21:3.13
failed=
for pair; do
    core=${pair%:*}
    python=${pair#*:}
    if ! command -v "python$python" >/dev/null; then
        echo "matrix: no python$python here, so no ansible-core $core with it"
        failed="$failed $pair"
        continue
    fi
    name=.venv/matrix/$core-$python
    build "$name" "$core" "$python"
    sh scripts/setup.sh sanity "$name"
    echo "matrix: ansible-core $core with Python $python"
    # shellcheck disable=SC2086 # one word is one file
    "$name/bin/python" -m pytest -n auto -p no:cacheprovider $TESTS || failed="$failed $pair"
done
[ -z "$failed" ] || { echo "matrix: not passed:$failed" >&2; exit 1; }
