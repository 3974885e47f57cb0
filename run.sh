#!/usr/bin/env bash
# Set-up in .venv and everything else in one word. `./run.sh` alone lists what there is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# Large pages for the arrays that XLA allocates anew in each step: fewer page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

usage() {
  cat <<'TEXT'
usage: ./run.sh WORD [--config.FIELD=VALUE ...]

  demo      the whole job on the embedded default (scikit-learn's digits), about a minute, no network
  faces     from nothing to a detector of faces, its report and its page for a browser, within an hour on 2 cores (downloads
            210 MB once); faces --full: the published recipe, an hour or two on 2 cores (1 GB
            more)
  faces_classify  faces or not, the whole job on 200 small pictures of scikit-image, a minute, no network
  cifar10   the same on CIFAR-10 (downloads 140 to 170 MB once), under an hour on 2 cores
  table2    the thesis's Table 2: every row of configs/cifar10_table2.py, its tables and picture; many hours on 2 cores
  table1    the thesis's Table 1: ResNet-50 and five students, by themselves and distilled; many hours on 2 cores
  pipeline  the whole chain into 59 KB: distil, prune, quantise, export, C, emulators; about three hours on 2 cores
  frontier  small networks for CIFAR-10 beside what others publish: accuracy against bytes and time; hours on 2 cores
  mcu       C from int8 models on a computer and on emulators of two boards' instruction sets, one table; trains four
            networks for it, about an hour on 2 cores
  run FILE  the same on any config, such as configs/folder.py --config.data.path=FOLDER for your own images
  sweep FILE --config.FIELD=A,B ...   every combination, one run folder each, one table (on the validation split)
  search --config=FILE --space=FILE --trials=N ...   Bayesian optimisation over any fields (on the validation split)
  page --workdir=RUN [--out=FOLDER]   one page that runs an exported network in a browser, on the camera and on photos
  test      the test suite
  lint      ruff: format and lint; mypy: types
  docs      the documentation, into site/; a broken link fails
  setup     only the set-up: .venv with the pinned packages

The job is train, export, evaluate and report; each also runs by itself, see README.md. Run folders go to runs/.
Data go to ~/.cache/atalaia, or where --data_dir or the environment variable ATALAIA_DATA says.
TEXT
}

python_that_fits() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found, and the pinned packages run on no other: install one of them" >&2
  exit 2
}

# setup FILE...: .venv holds what the requirement files pin; does nothing where it already does. To be called as a
# statement of its own: behind `&&` or `||` bash would go on after an installation that failed.
setup() {
  local file stamp python
  for file in "$@"; do
    stamp=".venv/.installed-$file"
    if ! cat "$file" requirements.txt constraints.txt | cmp -s - "$stamp" 2>/dev/null; then
      if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
        python=$(python_that_fits)
        "$python" -m venv .venv
      fi
      echo "installing $file into .venv (once)" >&2
      .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" -c requirements.txt -c constraints.txt
      cat "$file" requirements.txt constraints.txt >"$stamp"
    fi
  done
}

# job CONFIG [FLAG...]: the whole way from a config to an int8 model and its report.
job() {
  local config=$1 workdir flag train=()
  shift
  common=()
  workdir=runs/$(basename "$config" .py)
  for flag in "$@"; do
    case $flag in
      --workdir=*) workdir=${flag#*=} ;;
      --data_dir=*) common+=("$flag") ;;
      --workdir | --data_dir) echo "error: write $flag=FOLDER, without a space" >&2 && exit 2 ;;
      *) train+=("$flag") ;;
    esac
  done
  common+=("--workdir=$workdir")
  setup requirements.txt
  .venv/bin/python -m atalaia.train --config="$config" "${common[@]}" "${train[@]}"
  .venv/bin/python -m atalaia.export "${common[@]}"
  .venv/bin/python -m atalaia.evaluate "${common[@]}"
  .venv/bin/python -m atalaia.report "${common[@]}"
}

# What the tests of generated C need besides Python: installed where that is possible, named elsewhere.
compilers() {
  local packages="gcc make qemu-system-misc gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf"
  packages+=" gcc-xtensa-lx106 picolibc-xtensa-lx106-elf clang lld nodejs"
  local board missing=""
  for board in host rv32 lx106 wasm; do # asks for compiler, C library and emulator
    make -n -C mcu build BOARD="$board" > /dev/null 2>&1 || missing+=" $board"
  done
  [ -z "$missing" ] || debian "compilers and emulators for$missing" "$packages"
  make -n -C mcu build BOARD=esp32isa > /dev/null 2>&1 || # by itself: not every Debian has this version
    debian "a compiler for the ESP32's instructions" "clang-22 llvm-22 binutils-xtensa-lx106"
}

# What compiles C to WebAssembly; elsewhere the command says what is missing.
webassembly() {
  make -n -C mcu page BOARD=wasm > /dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    debian "a compiler for WebAssembly" "make clang lld"
  else
    echo "missing: make, clang and lld, which a page needs (Debian: apt-get install make clang lld); all else goes on" >&2
  fi
}

# What the tests of pages need.
browser() {
  command -v chromium > /dev/null || command -v google-chrome > /dev/null || debian "the browser chromium" chromium
}

# debian WHAT PACKAGES: installs Debian packages where that is possible, and says what is missing elsewhere.
debian() {
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing $1"
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2; } \
      > /dev/null 2>&1 || echo "could not install $1; by hand: apt-get install $2" >&2
  else
    echo "missing: $1; the tests that need them are skipped (Debian: apt-get install $2)" >&2
  fi
}

word=${1:-help}
[ $# -gt 0 ] && shift
case $word in
  demo) job configs/digits.py "$@" ;;
  faces_classify | cifar10) job "configs/$word.py" "$@" ;;
  faces)
    recipe=(configs/faces.py --workdir=runs/faces)
    [ "${1:-}" != --full ] || { recipe=(configs/faces.py:full --workdir=runs/faces_full) && shift; }
    webassembly
    setup requirements.txt requirements-label.txt
    job "${recipe[@]}" "$@"
    .venv/bin/python -m atalaia.browser "${common[@]}"
    ;;
  run)
    [ $# -gt 0 ] || { echo "error: ./run.sh run needs a config, such as configs/digits.py" >&2 && exit 2; }
    job "$@"
    ;;
  table1)
    setup requirements.txt
    .venv/bin/python "experiments/$word.py" "$@"
    ;;
  table2 | pipeline | frontier | mcu)
    compilers
    setup requirements.txt
    .venv/bin/python "experiments/$word.py" "$@"
    ;;
  page)
    webassembly
    setup requirements.txt
    .venv/bin/python -m atalaia.browser "$@"
    ;;
  sweep | search)
    setup requirements.txt
    case "$*" in *--executor=dask* | *--executor=slurm*) setup requirements-clusters.txt ;; esac
    .venv/bin/python -m "atalaia.$word" "$@"
    ;;
  test)
    compilers
    browser
    setup requirements.txt requirements-dev.txt
    .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"
    ;;
  lint)
    setup requirements.txt requirements-dev.txt # mypy reads the types of what we use
    .venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy
    ;;
  docs)
    setup requirements-dev.txt
    NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict "$@"
    ;;
  setup) setup requirements.txt ;;
  help | -h | --help) usage ;;
  *)
    echo "error: ./run.sh has no '$word'" >&2
    usage >&2
    exit 2
    ;;
esac
