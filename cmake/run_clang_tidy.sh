#!/usr/bin/env bash
# clang-tidy over csrc with the compile commands of the last build; of the ISA copies of a kernel
# the first is enough: the default one, unless the kernel is for a higher level alone. VENV and CXX
# come from the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."

build="build/cmake-$("$VENV/bin/python" -c 'import sys; print(sys.implementation.cache_tag)')"
# clang-tidy reads GCC's compile commands, but has no omp.h of its own.
omp="$(dirname "$("${CXX:-g++}" -print-file-name=include/omp.h)")"

{
  find csrc/core csrc/ops -name '*.cpp'
  find csrc -maxdepth 1 -name '*.cpp'
  find csrc/cpu -name '*.cpp' | while read -r kernel; do
    for level in default avx2 avx512; do
      copy="$build/isa/$level/${kernel#csrc/cpu/}"
      if [ -e "$copy" ]; then
        echo "$copy"
        break
      fi
    done
  done
} | xargs -P "$(nproc)" -n 1 "$VENV/bin/clang-tidy" -p "$build" --quiet --extra-arg=-idirafter"$omp"
