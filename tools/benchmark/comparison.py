"""The library and its peers: the same architecture, side by side, in one run.

Each contestant has a process of its own, so that its peak of memory is its own. A machine's GPU is
used by all.
"""

import json
import os
import subprocess
import sys
import time

from ours import OURS
from peers import PEERS
from turns import fixed_loop, in_turns, markdown, seconds_of, take_over_stdout, worker_command

CALLS = ("train_step", "log_prob", "sample")
CONTESTANTS = {model: {**OURS[model], **PEERS[model]} for model in OURS}
# Rows of a batch are what our cores share; all else has its library's own threads.
ONE_THREAD = ("keras_flows", "reversible", "bare")
MACHINE = "machine"  # the turns of a loop that would always take as long if nothing disturbed it
BUSY = 1.15  # times its fastest


def measure(model, names, depth, batch_size, rounds, dtype="float32"):
    """{name: figures} of one depth; times in seconds, memory in bytes."""
    results, workers = {MACHINE: {}}, {}
    try:
        for name in names:
            workers[name] = worker = Worker(model, name, depth, batch_size, dtype)
            built = worker.read()
            first = built if "missing" in built else worker.call("train_step")
            if "missing" in first:
                if first["missing"]:
                    results[name] = first
                workers.pop(name).stop()
                if name == "keras_flows":
                    raise SystemExit(f"keras_flows itself: {first['missing']}")
                continue
            results[name] = {
                "parameters": built["parameters"],
                "build": built["seconds"],
                "first_step": first["seconds"],
            }
            note = f"depth {depth}, {name}: first step after {first['seconds']:.1f} s"
            print(note, file=sys.stderr, flush=True)
        for call in CALLS:
            calls = {**timed(call, workers), MACHINE: fixed_loop}
            for name, figures in in_turns(calls, rounds).items():
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


def table(results, depth, batch_size, dtype="float32"):
    """The results of one depth in Markdown, and how much the machine was disturbed."""
    results = dict(results)
    machine = results.pop(MACHINE)
    ours = results["keras_flows"]

    def times(figures, call):
        seconds = figures[call]["median"]
        digits = 0 if seconds > 0.02 else 1
        return f"{1000 * seconds:.{digits}f} ms ({seconds / ours[call]['median']:.2f})"

    head = [f"depth {depth}, batch {batch_size}, {dtype}", "parameters"]
    head += ["first step", "train step"]
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
    return f"{markdown(rows)}\n\n{disturbance(machine)}"


def disturbance(machine):
    """What the turns of the fixed loop say of a table."""
    seconds = sorted(second for figures in machine.values() for second in figures["all"])
    middle, worst = (seconds[i] / seconds[0] for i in (len(seconds) // 2, -1))
    told = f"A fixed loop took {middle:.2f} times its fastest in the middle, {worst:.2f} at worst."
    if middle > BUSY:
        return f"**Other work shared the cores: this table counts for nothing.** {told}"
    return told


class Worker:
    """A contestant's process."""

    def __init__(self, model, name, *arguments):
        threads = {"TF_NUM_INTRAOP_THREADS": "1"} if name in ONE_THREAD else {}
        self.process = subprocess.Popen(
            worker_command("comparison", model, name, *arguments),
            env={**os.environ, **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self):
        """Its answer, or that there is none: a compiler's mistake can end a whole process."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "its process died in the first step"}

    def call(self, name):
        print(name, file=self.process.stdin, flush=True)
        return self.read()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def work(model, name, depth, batch_size, dtype):
    """In a worker: answers a call a line with a line of JSON, until the input ends."""
    answers = take_over_stdout()
    make = CONTESTANTS[model][name]

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        make(1, 1, dtype)  # what they import is no memory of the model's
    except ImportError as error:
        return answer(missing=f"not installed: {error.name}")
    except NotImplementedError as error:
        return answer(missing=str(error))
    idle = peak_memory()
    start = time.perf_counter()
    contestant = make(int(depth), int(batch_size), dtype)
    answer(parameters=contestant.parameters, seconds=time.perf_counter() - start)
    for line in sys.stdin:
        call = line.strip()
        if call == "measure":
            answer(memory=peak_memory() - idle, nodes=num_nodes(contestant.graph()))
        else:
            answer(seconds=seconds_of(getattr(contestant, call)))


def peak_memory():
    """In bytes: of a GPU, or else of this process; 0 where the system does not tell."""
    if "torch" in sys.modules:
        from torch import cuda

        if cuda.is_available():
            return cuda.max_memory_allocated()
    elif "tensorflow" in sys.modules:
        from tensorflow import config

        if config.list_physical_devices("GPU"):
            return config.experimental.get_memory_info("GPU:0")["peak"]
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
