"""The library and its peers: the same architecture, side by side, in one run.

Each contestant has a process of its own, so that its peak of memory is its own.
"""

import json
import subprocess
import sys
import time

from ours import OURS
from peers import PEERS
from turns import in_turns, markdown, seconds_of, take_over_stdout, worker_command

CALLS = ("train_step", "log_prob", "sample")
CONTESTANTS = {model: {**OURS[model], **PEERS[model]} for model in OURS}


def measure(model, names, depth, batch_size, rounds):
    """{name: figures} of one depth; times in seconds, memory in bytes."""
    results, workers = {}, {}
    try:
        for name in names:
            workers[name] = Worker(model, name, depth, batch_size)
            results[name] = workers[name].read()
            if "missing" in results[name]:
                workers.pop(name).stop()
                if name == "keras_flows":
                    raise SystemExit(f"keras_flows itself: {results[name]['missing']}")
                continue
            first = workers[name].call("train_step")["seconds"]
            results[name].update(first_step=first, build=results[name].pop("seconds"))
            note = f"depth {depth}, {name}: first step after {first:.1f} s"
            print(note, file=sys.stderr, flush=True)
        for call in CALLS:
            for name, figures in in_turns(timed(call, workers), rounds).items():
                results[name][call] = figures
            if call == "train_step":
                for name, worker in workers.items():
                    results[name].update(worker.call("measure"))
    finally:
        for worker in workers.values():
            worker.stop()
    return results


def timed(call, workers):
    """Functions by the workers' names that return a call's seconds."""
    return {
        name: lambda worker=worker: worker.call(call)["seconds"] for name, worker in workers.items()
    }


def table(results, depth, batch_size):
    """The results of one depth in Markdown."""
    ours = results["keras_flows"]

    def times(figures, call):
        seconds = figures[call]["median"]
        return f"{1000 * seconds:.0f} ms ({seconds / ours[call]['median']:.2f})"

    head = [f"depth {depth}, batch {batch_size}", "parameters", "first step", "train step"]
    head += ["log_prob", "sample", "peak memory", "graph nodes"]
    rows = [head, ["---"] * len(head)]
    for name, figures in results.items():
        if "missing" in figures:
            rows.append([name, figures["missing"], *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                name,
                f"{figures['parameters']:,}",
                f"{figures['first_step']:.1f} s",
                *(times(figures, call) for call in CALLS),
                f"{figures['memory'] / 2**20:,.0f} MiB",
                "-" if figures["nodes"] is None else f"{figures['nodes']:,}",
            ]
        )
    return markdown(rows)


class Worker:
    """A contestant's process."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            worker_command("comparison", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A contestant failed: see {' '.join(self.process.args)}")
        return json.loads(line)

    def call(self, name):
        print(name, file=self.process.stdin, flush=True)
        return self.read()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def work(model, name, depth, batch_size):
    """In a worker: answers a call a line with a line of JSON, until the input ends."""
    answers = take_over_stdout()
    make = CONTESTANTS[model][name]

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        make(1, 1)  # what they import is no memory of the model's
    except ImportError as error:
        return answer(missing=f"not installed: {error.name}")
    idle = peak_memory()
    start = time.perf_counter()
    contestant = make(int(depth), int(batch_size))
    answer(parameters=contestant.parameters, seconds=time.perf_counter() - start)
    for line in sys.stdin:
        call = line.strip()
        if call == "measure":
            answer(memory=peak_memory() - idle, nodes=num_nodes(contestant.graph()))
        else:
            answer(seconds=seconds_of(getattr(contestant, call)))


def peak_memory():
    """In bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            return 1024 * int(status.read().split("VmHWM:")[1].split()[0])
    except (FileNotFoundError, IndexError):
        return 0


def num_nodes(graph):
    """Those of a TensorFlow graph and the functions in it; None if there is no graph."""
    if graph is None:
        return None
    definition = graph.as_graph_def()
    nested = sum(len(function.node_def) for function in definition.library.function)
    return len(definition.node) + nested
