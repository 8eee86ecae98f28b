# Sourced by the scripts beside it: the checkout's root, and a virtual environment with aqx in it.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# venv_of PYTHON: print the folder of its environment; another version than python3's has a folder of its own.
venv_of() {
    local version
    version="$(version_of "$1")" || fail "cannot run '$1'; set PYTHON to a Python 3.11 or newer"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$1' is Python $version, and aqx needs 3.11 or newer; set PYTHON to one"
    if [ "$version" = "$(version_of python3)" ]; then echo "$root/.venv"; else echo "$root/.venv-$version"; fi
}

# ensure_venv [EXTRA]: set $python to an interpreter that has aqx and the extra installed, made from ${PYTHON:-python3}.
# Quick when nothing changed. Two calls at once wait for each other where the machine has flock.
ensure_venv() {
    local extra="${1:-}" base="${PYTHON:-python3}" venv
    venv="$(venv_of "$base")"
    python="$venv/bin/python"
    (
        if command -v flock >/dev/null; then flock 9; fi
        _install "$base" "$venv" "$extra" 9>&-
    ) 9>"$venv.lock" || fail "could not install aqx into $venv; the lines above say why"
}

# Runs where `set -e` is off (left of ||), so every step says itself what happens when it fails.
_install() {
    local base="$1" venv="$2" extra="$3" started=$SECONDS made wanted mark
    made="$("$base" -c 'import sys; print(sys.version)') in $root"
    wanted="$made $(cksum <"$root/pyproject.toml")"
    # Each of "", test and test-slow holds all that those before it do.
    local holders=("$extra")
    case "$extra" in
        "") holders+=(test test-slow) ;;
        test) holders+=(test-slow) ;;
    esac
    for mark in "${holders[@]}"; do
        if [ "$wanted" = "$(cat "$venv/.aqx-$mark" 2>/dev/null)" ]; then return; fi
    done

    echo "Installing aqx${extra:+ and its $extra extra} into ${venv##*/} (once; takes a minute or two)"
    if [ "$made" != "$(cat "$venv/.aqx-made" 2>/dev/null)" ]; then
        local without=()
        # Debian without python3-venv: the environment then borrows its Python's pip.
        "$base" -m ensurepip --version >/dev/null 2>&1 || without=(--without-pip)
        "$base" -m venv --clear "${without[@]+"${without[@]}"}" "$venv" || return
        echo "$made" >"$venv/.aqx-made"
    fi
    local pip=("$venv/bin/python" -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 || pip=("$base" -m pip --python "$venv/bin/python")
    "${pip[@]}" --disable-pip-version-check install -qq --editable "$root${extra:+[$extra]}" || return
    # pip takes nothing away, so that what else was installed for this same pyproject.toml is still there.
    for mark in "" test test-slow bench; do
        [ "$wanted" = "$(cat "$venv/.aqx-$mark" 2>/dev/null)" ] || rm -f "$venv/.aqx-$mark"
    done
    echo "$wanted" >"$venv/.aqx-$extra"
    echo "Installed in $((SECONDS - started)) s"
}

# run_aqx ARGUMENTS: become the command aqx, with the checkout's environment where there is one, else with python3.
run_aqx() {
    local python="$root/.venv/bin/python"
    [ -x "$python" ] || python="$(command -v python3)" || fail "python3 is not on PATH; aqx needs 3.11 or newer"
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONPATH
    "$python" -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("click", "duckdb", "flax"))))' ||
        fail "$python lacks what aqx needs; run $root/scripts/demo, or: python3 -m pip install $root"
    exec "$python" -m aqx "$@"
}
