#!/usr/bin/env python3
"""In which phases faults caught requests, over several reports of `cuelight chaos --json`: benches/chaos/caught.py FILE..."""

import json
import sys

PHASES = ("queued", "prefilling", "lent", "reserved", "transferring", "decoding")


def main():
    rows = {}
    for name in sys.argv[1:]:
        with open(name) as file:
            for row in json.load(file)["caught"]:
                counts = rows.setdefault((row["kind"], row["victim"]), dict.fromkeys(("count", *PHASES), 0))
                counts["count"] += row["count"]
                for phase in PHASES:
                    counts[phase] += row["phases"].get(phase, 0)
    print("| fault | of | count |", " | ".join(PHASES), "|")
    print("|---|---|" + "---|" * (len(PHASES) + 1))
    for (kind, victim), counts in rows.items():
        print(f"| {kind} | {victim} |", " | ".join(f"{count:,}" for count in counts.values()), "|")


main()
