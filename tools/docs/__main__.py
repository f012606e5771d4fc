"""`python -m tools.docs` writes the generated parts of the pages anew; `--check` only tells which are stale (exit 1).

A part stands between `<!-- begin NAME: python -m tools.docs -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.docs.parts import rewritten

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.docs", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := rewritten(text)) != text:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{'stale' if check else 'written'}: {page}")
    return 1 if check and stale else 0


raise SystemExit(main())
