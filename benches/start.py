#!/usr/bin/env python3
"""How long a node takes from the start of its process until `/health` answers 200: benches/start.py [--times 20] [ARGUMENTS OF serve…]

Needs `cargo build --release`. The model's files are in the page cache after the first start, which is reported apart.
"""

import argparse
import pathlib
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(arguments):
    """Seconds of one start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [ROOT / "target/release/cuelight", "serve", "--set", f"frontend.http={address}", *arguments]
    began = time.perf_counter()
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None and time.perf_counter() - began < 60:
            try:
                with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - began
            except (urllib.error.URLError, OSError):
                time.sleep(0.001)
        raise SystemExit(f"it did not become ready: {server.poll()}")
    finally:
        server.kill()
        server.wait()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=20)
    options, arguments = options.parse_known_args()
    first, *later = [1000 * start(arguments) for _ in range(options.times + 1)]
    print(f"first {first:.0f} ms; {options.times} more: median {statistics.median(later):.0f} ms, longest {max(later):.0f} ms")


if __name__ == "__main__":
    main()
