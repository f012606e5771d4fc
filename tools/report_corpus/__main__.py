"""python -m tools.report_corpus --out tests/reports/corpus [--only 03 17]"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tools.report_corpus import (
    contradictory,
    contradictory_calls,
    failing,
    forged,
    incomplete,
    other_formats,
    right,
    right_elsewhere,
    right_servers,
    understanding,
)
from tools.report_corpus.browser import Browser
from tools.report_corpus.draft import Draft
from tools.report_corpus.registry import REPORTS

WRITERS = (
    right,
    right_servers,
    right_elsewhere,
    other_formats,
    incomplete,
    contradictory,
    contradictory_calls,
    forged,
    failing,
    understanding,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.report_corpus", description="Write the corpus of reports.")
    parser.add_argument("--out", type=Path, default=Path("tests/reports/corpus"), help="its folder (%(default)s)")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the names of reports to write anew")
    options = parser.parse_args()
    chosen = [slug for slug in sorted(REPORTS) if slug.startswith(tuple(options.only))]
    with Browser() as browser, tempfile.TemporaryDirectory(prefix="corpus-") as scratch:
        for slug in chosen:
            write, settings = REPORTS[slug]
            folder = options.out / slug
            if folder.exists():
                shutil.rmtree(folder)
            write(Draft(folder, browser, Path(scratch), **settings))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{slug:44} {size / 1024:7.1f} KiB")
    whole = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{len(chosen)} of {len(REPORTS)} reports written; all together {whole / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
