"""Times this library against its peers: the same architecture, side by side, in one run.

Each contestant has a process of its own. They take turns, one call each in every round, so that a
change of the machine's pace meets all of them alike; compare ratios, not milliseconds. Peers come
with `pip install keras_flows[bench]`; one that is missing is a row that says so.

`bare` is the physical limit: the couplings' networks alone, trained on noise, with nothing around.

`--strategy multi_worker` times Glow on 1 and 2 workers instead, `--serving` as it is exported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZE, DIMENSIONS, WIDTH, LEVELS = 32, 64, 128, 3
CALLS = ("train_step", "log_prob", "sample")


# In a contestant's process.


class Ours:
    """A model of the zoo, trained by the step that `fit` runs."""

    def __init__(self, model, data):
        import keras
        import tensorflow as tf

        self.model, self.data = model, data
        model.adapt(data)
        model.compile(keras.optimizers.Adam(1e-4))
        model.optimizer.build(model.trainable_variables)
        model.make_train_function()
        self.batches = iter(tf.data.Dataset.from_tensors((data,)).repeat().prefetch(1))
        self.parameters = count(model.trainable_variables)

    def train_step(self):
        return float(self.model.train_function(self.batches)["loss"])

    def log_prob(self):
        return self.model.log_prob(self.data).numpy()

    def sample(self):
        return self.model.sample(len(self.data)).numpy()

    def graph_nodes(self):
        return graph_nodes(self.model.train_step, next(self.batches))


class Bare:
    """The networks of the model's couplings, in a row by shape, each fed by the one before."""

    def __init__(self, couplings, batch_size):
        import keras
        import tensorflow as tf

        variables = [variable for c, _ in couplings for variable in c.trainable_variables]
        optimizer = keras.optimizers.Adam(1e-4)
        optimizer.build(variables)

        def forward(batch_size):
            total, features = 0.0, {}
            for coupling, shape in couplings:
                if shape not in features:
                    x = tf.random.stateless_normal((batch_size, *shape), (0, 1))
                    x.set_shape((None, *shape))
                    features[shape] = x
                parameters = coupling.parameters_of(features[shape])
                features[shape] = parameters[..., : shape[-1]]  # so that its gradient is needed
                total += tf.reduce_sum(parameters)
            return total

        def step(batch_size):
            with tf.GradientTape() as tape:
                total = forward(batch_size)
            optimizer.apply_gradients(zip(tape.gradient(total, variables), variables))
            return total

        self.batch_size = tf.constant(batch_size)
        self.step, self.forward = tf.function(step), tf.function(forward)
        self.parameters = count(variables)

    def train_step(self):
        return float(self.step(self.batch_size))

    def log_prob(self):
        return float(self.forward(self.batch_size))

    sample = log_prob

    def graph_nodes(self):
        return graph_nodes(self.step.python_function, self.batch_size)


def count(variables):
    return sum(int(variable.shape.num_elements()) for variable in (v.value for v in variables))


def graph_nodes(function, *arguments):
    import tensorflow as tf

    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    definition = graph.as_graph_def()
    nested = sum(len(function.node_def) for function in definition.library.function)
    return len(definition.node) + nested


def glow(depth, batch_size, **options):
    import numpy as np

    from keras_flows import zoo

    images = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE, SIZE, 3), "uint8")
    return Ours(
        zoo.Glow((SIZE, SIZE, 3), levels=LEVELS, depth=depth, width=WIDTH, **options), images
    )


def bare_glow(depth, batch_size):
    from keras_flows import layers, networks

    couplings = []
    for level in range(1, LEVELS + 1):
        shape = (SIZE // 2**level, SIZE // 2**level, 3 * 2 ** (level + 1))
        for _ in range(depth):
            coupling = layers.AffineCoupling(networks.ConvNet(WIDTH))
            coupling.build((None, *shape))
            couplings.append((coupling, (*shape[:-1], shape[-1] // 2)))
    return Bare(couplings, batch_size)


def real_nvp(depth, batch_size):
    import numpy as np

    from keras_flows import zoo

    vectors = np.random.default_rng(0).normal(size=(batch_size, DIMENSIONS)).astype("float32")
    return Ours(zoo.RealNVP((DIMENSIONS,), depth=depth, width=WIDTH, batch_norm=False), vectors)


def bare_real_nvp(depth, batch_size):
    from keras_flows import layers, networks

    couplings = []
    for _ in range(depth):
        coupling = layers.AffineCoupling(networks.MLP(WIDTH))
        coupling.build((None, DIMENSIONS))
        couplings.append((coupling, (DIMENSIONS // 2,)))
    return Bare(couplings, batch_size)


OURS = {
    "glow": {
        "keras_flows": glow,
        "reversible": lambda *sizes: glow(*sizes, reversible=True),
        "bare": bare_glow,
    },
    "real_nvp": {"keras_flows": real_nvp, "bare": bare_real_nvp},
}


def contestants(model):
    from peers import PEERS

    return {**OURS[model], **PEERS[model]}


def work(model, name, depth, batch_size):
    """Answers a call a line with a line of JSON, until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        # What they import is no memory of the model's.
        contestants(model)[name](1, 1)
    except ImportError as error:
        return answer(missing=f"not installed: {error.name}")
    idle = peak_memory()
    start = time.perf_counter()
    contestant = contestants(model)[name](depth, batch_size)
    answer(parameters=contestant.parameters, seconds=time.perf_counter() - start)
    for line in sys.stdin:
        call = line.strip()
        if call == "measure":
            answer(memory=peak_memory() - idle, nodes=contestant.graph_nodes())
        else:
            start = time.perf_counter()
            getattr(contestant, call)()
            answer(seconds=time.perf_counter() - start)


def peak_memory():
    """In bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            return 1024 * int(status.read().split("VmHWM:")[1].split()[0])
    except (FileNotFoundError, IndexError):
        return 0


# In the process that the user started.


class Worker:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *map(str, arguments)],
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
            first = workers[name].call("train_step")
            results[name].update(
                first_step=first.get("seconds"), build=results[name].pop("seconds")
            )
            note(f"depth {depth}, {name}: first step after {first['seconds']:.1f} s")
        for call in CALLS:
            times = {name: [] for name in workers}
            for name, worker in workers.items():
                worker.call(call)  # traces
            for _ in range(rounds):
                for name, worker in workers.items():
                    times[name].append(worker.call(call)["seconds"])
            for name, seconds in times.items():
                results[name][call] = {"median": statistics.median(seconds), "all": seconds}
            if call == "train_step":
                for name, worker in workers.items():
                    results[name].update(worker.call("measure"))
    finally:
        for worker in workers.values():
            worker.stop()
    return results


def table(results, depth, batch_size):
    """The results of one depth in Markdown."""
    ours = results["keras_flows"]

    def times(figures, call):
        seconds = figures[call]["median"]
        return f"{1000 * seconds:.0f} ms ({seconds / ours[call]['median']:.2f})"

    lines = [
        f"depth {depth}, batch {batch_size} | parameters | first step | train step | log_prob | "
        "sample | peak memory | graph nodes",
        " | ".join(["---"] * 8),
    ]
    for name, figures in results.items():
        if "missing" in figures:
            lines.append(f"{name} | {figures['missing']}" + " |" * 6)
            continue
        cells = [
            name,
            f"{figures['parameters']:,}",
            f"{figures['first_step']:.1f} s",
            *(times(figures, call) for call in CALLS),
            f"{figures['memory'] / 2**20:,.0f} MiB",
            "-" if figures["nodes"] is None else f"{figures['nodes']:,}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def note(text):
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=OURS, default="glow")
    parser.add_argument("--depth", type=int, nargs="+", help="default: 4 8 16 32; real_nvp: 8")
    parser.add_argument("--batch_size", type=int, help="default: 32; real_nvp: 1024")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=(), help="names of contestants besides ours")
    parser.add_argument("--strategy", choices=["multi_worker"], help="Glow on 1 and 2 workers")
    parser.add_argument(
        "--serving", action="store_true", help="Glow as exported, at batch sizes 1, 8 and 64"
    )
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    if arguments.serving:
        every = serving_figures(parser, arguments)
    elif arguments.strategy:
        every = scaling_figures(arguments)
    else:
        every = comparison(parser, arguments)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(every, file, indent=1)


def serving_figures(parser, arguments):
    """Prints a table for each depth, and returns {depth: figures}."""
    for name in ("batch_size", "only", "strategy"):
        if getattr(arguments, name):
            parser.error(f"--serving takes no --{name}")
    if arguments.model != "glow":
        parser.error(f"--serving times glow. Received: {arguments.model}")
    import serving

    every = {}
    for depth in arguments.depth or [8]:
        with tempfile.TemporaryDirectory() as folder:
            every[depth] = serving.measure(depth, folder, arguments.rounds)
        print(serving.table(every[depth], depth), end="\n\n", flush=True)
    return every


def scaling_figures(arguments):
    """Prints a table for each depth, and returns {depth: figures}."""
    import scaling

    every = {}
    for depth in arguments.depth or [8]:
        every[depth] = scaling.measure(depth, arguments.batch_size or 32, arguments.rounds)
        print(scaling.table(every[depth], depth), end="\n\n", flush=True)
    return every


def comparison(parser, arguments):
    """Prints a table for each depth, and returns {depth: figures}."""
    depths = arguments.depth or {"glow": [4, 8, 16, 32], "real_nvp": [8]}[arguments.model]
    batch_size = arguments.batch_size or {"glow": 32, "real_nvp": 1024}[arguments.model]
    names = list(contestants(arguments.model))
    unknown = set(arguments.only) - set(names)
    if unknown:
        parser.error(f"--only takes {', '.join(names)}. Received: {', '.join(unknown)}")
    if arguments.only:
        names = ["keras_flows", *(name for name in names if name in arguments.only)]
    every = {}
    for depth in depths:
        every[depth] = measure(arguments.model, names, depth, batch_size, arguments.rounds)
        print(table(every[depth], depth, batch_size), end="\n\n", flush=True)
    return every


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if sys.argv[1:2] == ["--worker"]:
        model, name, depth, batch_size = sys.argv[2:]
        work(model, name, int(depth), int(batch_size))
    else:
        main()
