"""Measure what this package costs, print each figure with its target, and write it into `bench/results/figures.md`.

Name the parts to measure; the default is all, which takes half an hour. `--quick` runs them with a 500th of every
size, as a test of the benchmark, and writes to a temporary folder.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import shutil
import tempfile
import time
from pathlib import Path

from bench import page, statements
from bench.figures import medians
from bench.filling import fill
from bench.testbed import Testbed
from mailglass_reconcile.testing import servers

ROOT = Path(__file__).parents[1]
QUICK = 500
"""What `--quick` divides every size by."""

PARTS = {
    "calls": "one call of an application, against hand-written SQL",
    "receiving": "webhooks over HTTP, against calls",
    "sweep": "one sweep, against the bare statement",
    "layouts": "sweeps that link nothing, in two layouts",
    "latency": "from the commit to a subscriber",
    "backlog": "half a million orphans, for one, two and four processes",
    "handlers": "how fast handlers run",
    "sizing": "disk, WAL and vacuum of a million messages a day, measured at a tenth",
}


def main() -> None:
    """Run the benchmark; the exit code is 0 even if a target is missed, because the figures show it."""
    parts = "\n".join(f"  {name:<10}{about}" for name, about in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="take medians of N runs of each part")
    parser.add_argument("--quick", action="store_true", help="run with a 500th of every size")
    options = parser.parse_args()
    names = options.parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    root = Path(tempfile.mkdtemp(prefix="mailglass-bench-")) if options.quick else ROOT
    if options.quick:
        shutil.copytree(ROOT / page.RESULTS, root / page.RESULTS)
        shutil.copytree(ROOT / page.PICTURES, root / page.PICTURES)
        shutil.copy(ROOT / page.PAGE, root / page.PAGE)
    servers.exit_on_signals()
    with servers.postgres_server() as postgres, servers.redis() as redis_url:
        testbed = Testbed(postgres, redis_url, QUICK if options.quick else 1)
        for name in names:
            _run(name, testbed, root, options)
    print(f"\nwritten to {root / page.RESULTS}/figures.md, and to {page.PAGE}, which quotes some")


def bare_rate(testbed: Testbed) -> float:
    """Return how many events a second one bare SQL statement links: the speed of this machine at this moment."""
    messages = testbed.scaled(5_000)
    url = testbed.copy("migrated", "speed")
    fill(url, deliveries=messages, messages=messages)
    seconds, _ = statements.run_bare_statement(url)
    testbed.drop("speed")
    return 2 * messages / seconds


def _run(name: str, testbed: Testbed, root: Path, options: argparse.Namespace) -> None:
    print(f"\n{name}: {PARTS[name]}", flush=True)
    about, measured = testbed.about(bare_rate(testbed)), page.read(root)
    began = time.monotonic()
    measure = importlib.import_module(f"bench.parts.{name}").measure
    result = medians([measure(testbed) for _ in range(options.runs)])
    measured[name] = {
        "command": f"python -m bench{' --quick' * options.quick} {name}",
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{about}, {'one run' if options.runs == 1 else f'medians of {options.runs}'},"
        f" {time.monotonic() - began:.0f} s",
        "figures": [figure.as_json() for figure in result.figures],
        "curves": result.curves,
    }
    page.write(root, measured, draws=not options.quick)
    missed = [figure.name for figure in result.figures if figure.verdict == "missed"]
    print(f"{len(missed)} missed: {'; '.join(missed)}" if missed else "every target met", flush=True)


if __name__ == "__main__":
    main()
