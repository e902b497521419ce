"""Throughput of training on 1 and 2 workers.

Each is a process that has cores of its own, as many as the others: a stand-in for machines.
"""

import json
import os
import pathlib
import select
import subprocess
import sys

from ours import compile_and_build, glow_model
from sizes import random_images
from turns import in_turns, markdown, seconds_of, take_over_stdout, worker_command

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # cluster.py is train.py's, too

WORKERS = 2


def measure(depth, batch_size, rounds):
    """{row: figures}; the groups of workers take turns, a step each in every round."""
    groups = {
        f"1 worker, batch {batch_size}": Group(1, depth, batch_size),
        f"{WORKERS} workers, global batch {batch_size}": Group(WORKERS, depth, batch_size),
        f"{WORKERS} workers, local batch {batch_size}": Group(WORKERS, depth, WORKERS * batch_size),
    }
    try:
        seconds = in_turns({row: group.step for row, group in groups.items()}, rounds)
    finally:
        for group in groups.values():
            group.stop()
    return {
        row: {"images_per_second": groups[row].batch_size / figures["median"], **figures}
        for row, figures in seconds.items()
    }


def table(results, depth):
    """The results of one depth in Markdown."""
    (one, *_) = results.values()
    rows = [
        [f"Glow, depth {depth}", "train step", "images / s", "of one worker's"],
        ["---", "---:", "---:", "---:"],
    ]
    for row, figures in results.items():
        ratio = figures["images_per_second"] / one["images_per_second"]
        step, pace = f"{1000 * figures['median']:.0f} ms", f"{figures['images_per_second']:.1f}"
        rows.append([row, step, pace, f"{ratio:.2f}"])
    return markdown(rows)


class Group:
    """Workers of one cluster, which wait for a line each and then make a step together."""

    def __init__(self, count, depth, batch_size):
        from cluster import start_workers

        self.batch_size = batch_size
        command = worker_command("scaling", depth, batch_size)
        pipe = subprocess.PIPE
        self.workers = start_workers(command, count, stdin=pipe, stdout=pipe, text=True)

    def step(self):
        for worker in self.workers:
            print(file=worker.stdin, flush=True)
        seconds, waited_for = [], {worker.stdout for worker in self.workers}
        while waited_for:  # for any, as the others wait for one that has ended
            for answers in select.select(waited_for, [], [])[0]:
                line = answers.readline()
                if not line:
                    sys.exit("A worker has ended; what it wrote stands above.")
                seconds.append(float(line))
                waited_for.remove(answers)
        return max(seconds)

    def stop(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()


def work(depth, batch_size):
    """In a worker: answers a line with the seconds of a train step, until it is stopped."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // WORKERS)
        # One core, if there is no more, is all of theirs.
        os.sched_setaffinity(0, cores[share * index : share * (index + 1)] or cores)
    answers = take_over_stdout()

    from cluster import make_strategy

    strategy = make_strategy("multi_worker")
    import tensorflow as tf

    with strategy.scope():
        model = glow_model(int(depth))
        compile_and_build(model)
    images = random_images(int(batch_size))
    batches = tf.data.Dataset.from_tensors(images).repeat().prefetch(1)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = batches.with_options(options)
    model.adapt(batches)
    model.make_train_function()
    batches = iter(strategy.experimental_distribute_dataset(batches))
    for _ in sys.stdin:
        seconds = seconds_of(lambda: float(model.train_function(batches)["loss"]))
        print(seconds, file=answers, flush=True)
