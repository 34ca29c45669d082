"""The gate on ISA objects: fails the build when one of them could leak code into another.

The linker keeps one copy of a weak symbol. If an object that was compiled for AVX-512 defines one
(an inline function that was not inlined, a template of the standard library), that copy may be the
one that runs on a CPU without AVX-512. The same holds for code that runs at load time. So an ISA
object may define local symbols, and global ones inside its own namespace, and nothing else.
"""

import argparse
import re
import subprocess
import sys

WEAK = set("WwVvu")
ISA_NAMESPACE = re.compile(r"nnops::cpu_(default|avx2|avx512)::")


def leaks(nm: str, path: str) -> list[str]:
    listing = subprocess.run(
        [nm, "--defined-only", "--demangle", path], check=True, capture_output=True, text=True
    ).stdout
    found = []
    for line in listing.splitlines():
        _, kind, name = line.split(maxsplit=2)
        static_init = "_GLOBAL__sub_I" in name or "static_initialization" in name
        foreign = kind.isupper() and not ISA_NAMESPACE.search(name)
        if kind in WEAK or static_init or foreign:
            found.append(f"{path}: {kind} {name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", required=True)
    parser.add_argument("objects", nargs="+")
    options = parser.parse_args()
    found = [leak for path in options.objects for leak in leaks(options.nm, path)]
    for leak in found:
        print(f"leaked symbol in an ISA object: {leak}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
