"""What every measurement needs: processes of its own, turns, and a table of what came out."""

import concurrent.futures
import hashlib
import os
import statistics
import sys
import time

from sizes import number_of_cores

NOT_COUNTED = 2  # rounds; the first traces
PAUSE = 0.1  # seconds before each turn: threads of the one before may wait by spinning for a while


def worker_command(module, *arguments):
    """The command of a process that calls `module.work(*arguments)`, with strings."""
    folder = os.path.dirname(__file__)
    return [sys.executable, folder, "--worker", module, *map(str, arguments)]


def take_over_stdout():
    """A worker's answers, a file: what libraries print goes to standard error from here on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fixed_loop():
    """Seconds of work that is always the same, on each core at once, until the last is done."""

    def work(_):
        for _ in range(4):
            hashlib.sha256(bytes(2**20)).digest()  # other threads run meanwhile

    cores = number_of_cores()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        return seconds_of(lambda: list(pool.map(work, range(cores))))


def in_turns(calls, rounds):
    """{name: median and all seconds}; one call each in every round, each time another first.

    `calls` are functions by name that return the seconds that they took.
    """
    seconds, names = {name: [] for name in calls}, list(calls)
    for i in range(NOT_COUNTED + rounds):
        names.append(names.pop(0))
        for name in names:
            time.sleep(PAUSE)
            elapsed = calls[name]()
            if i >= NOT_COUNTED:
                seconds[name].append(elapsed)
    return {
        name: {"median": statistics.median(each), "all": each} for name, each in seconds.items()
    }


def markdown(rows):
    """A table of rows of cells."""
    return "\n".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows
    )
