"""Seconds from the shell to the ranked list, cold: `python benchmarks/shell_to_list.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

COMMANDS = (
    ("tune", "llama3-70b", "--machine", "trn2", "--chips", "64"),
    ("tune", "llama3-405b", "--machine", "trn2-ultraserver", "--chips", "1024"),
    ("tune", "deepseek-v3", "--machine", "trn2", "--chips", "512"),
    ("estimate", "llama3-70b", "--machine", "trn2", "--chips", "64", "--layout", "fsdp=128,tp=2"),
    ("--help",),
    ("hardware", "list"),
)


def main() -> None:
    print("| command | wall [s] | CPU [s] |\n|---|---|---|")
    for words in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            before, started = _cpu(), time.perf_counter()
            command = [sys.executable, "-m", "perfmodel", *words]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            wall, cpu = time.perf_counter() - started, _cpu() - before
        print(f"| perfmodel {' '.join(words)} | {wall:.2f} | {cpu:.2f} |")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
