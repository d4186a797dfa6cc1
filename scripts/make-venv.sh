#!/bin/sh
# Makes the environment DIR (a virtual environment) and installs this project into it, with an extra if one is
# named.   make-venv.sh DIR [EXTRA] [PYTHON]
# What the machine lacks and root may install (Debian's python3-venv) is installed; otherwise one line says so.
set -eu
dir=$1 extra=${2:-} wanted=${3:-}

new_enough() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_venv() { "$1" -c 'import ensurepip, venv, sqlite3, ssl' >/dev/null 2>&1; }

find_python() {
    for candidate in $wanted python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
        if new_enough "$candidate" && has_venv "$candidate"; then echo "$candidate"; return 0; fi
    done
    return 1
}

install_venv() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    echo "installing python3-venv" >&2
    { apt-get install -y --no-install-recommends python3-venv ||
        { apt-get update && apt-get install -y --no-install-recommends python3-venv; }; } >/dev/null 2>&1
}

if ! [ -x "$dir/bin/python" ] || ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || { install_venv || true; python=$(find_python); } || {
        echo "p2psipd needs Python 3.11 or newer with its venv module: as root, apt-get install python3-venv" >&2
        exit 1
    }
    echo "making $dir with $("$python" --version)"
    "$python" -m venv "$dir"
fi
echo "installing p2psipd${extra:+ with what its ${extra}s need} into $dir"
log=$dir/install.log
if ! "$dir/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "could not install p2psipd into $dir; the whole of it is in $log" >&2
    exit 1
fi
