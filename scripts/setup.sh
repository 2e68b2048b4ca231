#!/bin/sh
# Make this machine ready for one target of the Makefile.
#
#   scripts/setup.sh check|demo|fleet|test   install the Debian packages that are missing
#   scripts/setup.sh venv      the same for `check`, then build .venv
#   scripts/setup.sh wheels    .venv/wheels: what Parallax needs, to install it without a network
#   scripts/setup.sh sshd      .venv/sshd: an SSH server for simulated hosts
#   scripts/setup.sh sanity    what ansible-test needs in .venv, once (two minutes); or in
#                              the environment that is named (scripts/matrix.sh)
#
# apt is called only when something is missing, and only by root or with a sudo that asks
# for no password; otherwise one line says what to install. PYTHON names the interpreter;
# without it the first that is new enough is taken.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "setup: $*" >&2
    exit 1
}

# has PACKAGE: is what we use of it there, wherever it came from?
has() {
    case $1 in
        e2fsprogs) command -v mkfs.ext4 && command -v e2fsck && command -v debugfs ;;
        graphviz) command -v dot ;;
        iproute2) command -v ip ;;
        systemd) command -v systemd-analyze ;;
        man-db) command -v man && command -v groff ;;
        hostname) command -v hostname ;;
        libvirt-clients) command -v virsh ;;
        openssh-client) command -v ssh && command -v ssh-keygen ;;
        systemd-container) command -v systemd-nspawn ;;
        util-linux) command -v unshare && command -v nsenter ;;
        libnbd-bin) command -v nbdcopy && command -v nbdinfo ;;
        python3-libnbd) /usr/bin/python3 -c 'import nbd' ;;
        qemu-system-x86) command -v qemu-system-x86_64 ;;
        qemu-utils) command -v qemu-img && command -v qemu-io && command -v qemu-nbd ;;
        xz-utils) command -v xz ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

# find_python CODE: print the first interpreter new enough that runs CODE.
find_python() {
    code="import sys; assert sys.version_info >= (3, 11); $1"
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3
    fi
    for candidate; do
        if "$candidate" -c "$code" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

can_make_venv='import venv, ensurepip'

# missing PACKAGE...: print those that are not there, and what a first .venv needs.
missing() {
    if .venv/bin/python -c '' 2>/dev/null || find_python "$can_make_venv" >/dev/null; then
        :
    elif find_python pass >/dev/null; then
        echo python3-venv
    elif [ -z "${PYTHON:-}" ]; then
        echo python3 python3-venv
    fi
    for package; do
        has "$package" || echo "$package"
    done
}

install() {
    if ! command -v apt-get >/dev/null; then
        fail "missing: $* (these are Debian's package names)"
    elif [ "$(id -u)" -eq 0 ]; then
        sudo=
    elif sudo -n true 2>/dev/null; then
        sudo="sudo -n"
    else
        fail "missing Debian packages: $* (as root: apt-get install $*)"
    fi
    echo "setup: installing Debian packages: $*"
    apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
    $apt update </dev/null || true # one dead source must not stop the others
    $apt install --yes --no-install-recommends "$@" </dev/null ||
        fail "could not install Debian packages: $*"
}

packages() {
    # shellcheck disable=SC2046 # one word is one package
    set -- $(missing "$@")
    [ $# -eq 0 ] || install "$@"
}

build_venv() {
    python=$(find_python "$can_make_venv") ||
        fail "${PYTHON:-python3} is not Python 3.11 or newer with venv and ensurepip (name one: PYTHON=...)"
    options=
    if [ -e .venv ]; then
        if ! .venv/bin/python -c '' 2>/dev/null; then
            options=--clear # its interpreter is gone
        elif [ -n "${PYTHON:-}" ] && [ "$PYTHON" != "$(cat .venv/.stamp 2>/dev/null)" ]; then
            options=--clear # another interpreter was asked for
        fi
    fi
    echo "setup: building .venv with $("$python" --version)"
    rm -f .venv/.stamp
    "$python" -m venv $options .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,ansible]'
    echo "${PYTHON:-}" >.venv/.stamp
}

# fetch_wheels: what the lock file names, for the interpreter of .venv; again when that has changed.
fetch_wheels() {
    wanted=$(.venv/bin/python --version | cat - requirements.lock | cksum)
    [ "$wanted" != "$(cat .venv/wheels/.stamp 2>/dev/null)" ] || return 0
    echo "setup: fetching the wheels of what Parallax needs"
    rm -rf .venv/wheels.new
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --only-binary :all: \
        --require-hashes --requirement requirements.lock --dest .venv/wheels.new
    echo "$wanted" >.venv/wheels.new/.stamp
    rm -rf .venv/wheels
    mv .venv/wheels.new .venv/wheels
}

# unpack_sshd: an SSH server that is not installed, so that no service starts. Needs no root.
unpack_sshd() {
    if command -v sshd >/dev/null || [ -x .venv/sshd/usr/sbin/sshd ]; then
        return 0
    fi
    echo "setup: unpacking an SSH server for simulated hosts into .venv/sshd"
    place=$(mktemp -d)
    apt-get -qq update </dev/null >/dev/null 2>&1 || true # not for everyone, and seldom needed
    (cd "$place" && apt-get -qq -o APT::Sandbox::User=root download \
        openssh-server openssh-sftp-server libwrap0) </dev/null ||
        fail "could not fetch the Debian packages openssh-server openssh-sftp-server libwrap0"
    mkdir -p .venv/sshd
    for package in "$place"/*.deb; do dpkg-deb -x "$package" .venv/sshd; done
    rm -r "$place"
}

# build_sanity: ansible-test keeps an environment for each of its checks, with versions of its own.
# It would fetch pip from a site of its own; the script in that place takes the one Python has.
build_sanity() {
    venv=$PWD/$1
    home=$venv/ansible-test
    core=$("$venv/bin/python" -c 'import ansible.release; print(ansible.release.__version__)')
    [ "$core" != "$(cat "$home/.stamp" 2>/dev/null)" ] || return 0
    echo "setup: building the environments of ansible-test $core"
    rm -rf "$home"
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    pip=$("$venv/bin/python" - "$version" <<'END'
import sys
import types
from ansible_test._internal.python_requirements import get_venv_packages
python = types.SimpleNamespace(version=sys.argv[1])
print(get_venv_packages(python)["pip"].replace(".", "_"))
END
    )
    # Outside of this checkout: ansible-test leaves out what git ignores.
    place=$(mktemp -d)
    mkdir -p "$home/.ansible/test/cache" "$place/ansible_collections/parallax"
    echo 'import ensurepip; ensurepip.bootstrap()' >"$home/.ansible/test/cache/get_pip_$pip.py"
    cp -r ansible_collection "$place/ansible_collections/parallax/storage"
    (
        PATH=$venv/bin:$PATH
        cd "$place/ansible_collections/parallax/storage"
        HOME=$home LC_ALL=C.UTF-8 \
            ansible-test sanity --prime-venvs --color no --python "$version" >"$home/log" 2>&1
    ) || fail "ansible-test could not build its environments: see $home/log"
    rm -r "$place"
    echo "$core" >"$home/.stamp"
}

case ${1:-} in
    check) packages ;;
    demo) packages e2fsprogs graphviz qemu-utils ;;
    fleet)
        [ "$(id -u)" -eq 0 ] || fail "only root can make simulated hosts: sudo make fleet-demo"
        packages hostname iproute2 openssh-client qemu-utils util-linux
        ;;
    test)
        # nbd-client and shellcheck: for the block script of Xen
        packages make bzip2 curl e2fsprogs fio fish git graphviz hostname iproute2 less libnbd-bin \
            libvirt-clients lz4 man-db nbd-client nbdkit openssh-client python3-libnbd shellcheck \
            systemd qemu-system-x86 qemu-utils strace util-linux xz-utils zsh zstd
        [ "${PARALLAX_LONG:-}" != 1 ] || packages systemd-container
        ;;
    venv)
        packages
        build_venv
        ;;
    wheels) fetch_wheels ;;
    sshd) unpack_sshd ;;
    sanity) build_sanity "${2:-.venv}" ;;
    *) fail "usage: scripts/setup.sh check|demo|fleet|test|venv|wheels|sshd|sanity" ;;
esac
