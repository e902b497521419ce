"""Throughput of training on 1 and 2 workers, which benchmark.py --strategy prints.

Each worker is a process that has cores of its own, as many as the others: a stand-in for machines.
"""

import json
import os
import statistics
import subprocess
import sys
import time

WORKERS = 2


def measure(depth, batch_size, rounds):
    """{row: figures}; the groups of workers take turns, a step each in every round."""
    groups = {
        f"1 worker, batch {batch_size}": Group(1, depth, batch_size),
        f"{WORKERS} workers, global batch {batch_size}": Group(WORKERS, depth, batch_size),
        f"{WORKERS} workers, local batch {batch_size}": Group(WORKERS, depth, WORKERS * batch_size),
    }
    try:
        for _ in range(2):  # traces, and a step that is not counted
            for group in groups.values():
                group.step()
        seconds = {row: [] for row in groups}
        for _ in range(rounds):
            for row, group in groups.items():
                seconds[row].append(group.step())
    finally:
        for group in groups.values():
            group.stop()
    return {
        row: {
            "images_per_second": groups[row].batch_size / statistics.median(all_seconds),
            "median": statistics.median(all_seconds),
            "all": all_seconds,
        }
        for row, all_seconds in seconds.items()
    }


def table(results, depth):
    """The results in Markdown."""
    (one, *_) = results.values()
    lines = [
        f"Glow, depth {depth} | train step | images / s | of one worker's",
        "--- | ---: | ---: | ---:",
    ]
    for row, figures in results.items():
        ratio = figures["images_per_second"] / one["images_per_second"]
        lines.append(
            f"{row} | {1000 * figures['median']:.0f} ms | {figures['images_per_second']:.1f} | "
            f"{ratio:.2f}"
        )
    return "\n".join(f"| {line} |" for line in lines)


class Group:
    """Workers of one cluster, which wait for a line each and then make a step together."""

    def __init__(self, count, depth, batch_size):
        from cluster import start_workers

        self.batch_size = batch_size
        command = [sys.executable, __file__, str(depth), str(batch_size)]
        pipe = subprocess.PIPE
        self.workers = start_workers(command, count, stdin=pipe, stdout=pipe, text=True)

    def step(self):
        for worker in self.workers:
            print(file=worker.stdin, flush=True)
        return max(float(worker.stdout.readline()) for worker in self.workers)

    def stop(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()


def work(depth, batch_size):
    """In a worker: answers a line with the seconds of a train step."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // WORKERS)
        os.sched_setaffinity(0, cores[share * index : share * (index + 1)])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print

    from cluster import make_strategy

    strategy = make_strategy("multi_worker")
    import keras
    import numpy as np
    import tensorflow as tf
    from benchmark import LEVELS, SIZE, WIDTH

    from keras_flows import zoo

    images = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE, SIZE, 3), "uint8")
    with strategy.scope():
        model = zoo.Glow((SIZE, SIZE, 3), levels=LEVELS, depth=depth, width=WIDTH)
        model.compile(keras.optimizers.Adam(1e-4))
        model.optimizer.build(model.trainable_variables)
    batches = tf.data.Dataset.from_tensors(images).repeat().prefetch(1)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = batches.with_options(options)
    model.adapt(batches)
    model.make_train_function()
    batches = iter(strategy.experimental_distribute_dataset(batches))
    for _ in sys.stdin:
        start = time.perf_counter()
        float(model.train_function(batches)["loss"])
        print(time.perf_counter() - start, file=answers, flush=True)


if __name__ == "__main__":
    work(*map(int, sys.argv[1:]))
