"""Measure what this package costs, beside the same work written by hand or beside another commit.

Both sides take turns in one run, so that a slower minute of the machine meets both; a ratio is the median of the
turns' ratios, with the lowest and the highest. Rates of different runs cannot be compared.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import sys
from pathlib import Path

from bench.results import Results
from bench.testbed import Testbed, other_commit
from mailglass_reconcile.testing import servers

PARTS = {
    "calls": "one call of an application, and calls with many rows",
    "sweep": "sweeps that link, that match nothing, and of a misrouted campaign, on both kinds of tables",
    "backlog": "200,000 orphans, for one process and two",
    "growth": "calls and links against events in the ledger (`--history`), links against processes",
    "sizing": "disk, WAL, prune and vacuum of a million messages a day, measured at a tenth",
}
COMPARABLE = ("calls", "sweep")
QUICK = 500
"""What `--quick` divides every size by."""


def main() -> None:
    """Run the parts, print each figure, and write all of them as JSON if a file is named."""
    epilog = "parts:\n" + "\n".join(f"  {name:<10}{about}" for name, about in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all that can be measured, half an hour")
    parser.add_argument("--against", metavar="COMMIT", help=f"compare with this commit; only {', '.join(COMPARABLE)}")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the figures; other parts in it are kept")
    parser.add_argument("--quick", action="store_true", help=f"divide every size by {QUICK}, to test the benchmark")
    parser.add_argument("--history", metavar="EVENTS", type=int, nargs="+", help="sizes of growth, in rising order")
    options = parser.parse_args()
    possible = COMPARABLE if options.against else tuple(PARTS)
    names = options.parts or list(possible)
    if unknown := [name for name in names if name not in possible]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(possible)}")
    if options.history and options.history != sorted({*options.history} - {0, 1}):
        parser.error("--history: name rising numbers of events")
    if options.output and not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    servers.exit_on_signals()
    with (
        servers.postgres_server() as postgres,
        servers.redis() as redis_url,
        other_commit(options.against) as tree,
        Testbed(postgres, redis_url, QUICK if options.quick else 1, options.against, tree) as testbed,
    ):
        testbed.history = tuple(options.history or ())
        for name in names:
            print(f"\n{name}: {PARTS[name]}", flush=True)
            about = testbed.describe()
            results = Results()
            importlib.import_module(f"bench.parts.{name}").measure(testbed, results)
            if options.output:
                command = f"python -m bench {' '.join(sys.argv[1:])}"
                _store(options.output, name, {"command": command, "about": about, "figures": results.as_json()})


def _store(file: Path, name: str, part: dict[str, object]) -> None:
    """Replace one part of the file."""
    parts = json.loads(file.read_text()) if file.exists() else {}
    parts[name] = {"date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", **part}
    file.write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
