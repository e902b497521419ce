"""Strategies of tf.distribute by name, and workers on this machine to try them out."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import tensorflow as tf

STRATEGIES = ("none", "mirrored", "multi_worker")
GRACE = 30  # seconds that workers have to stop by themselves once one has failed


def make_strategy(name):
    """A strategy, to be made before TensorFlow computes anything.

    "mirrored" has a replica on each GPU of this machine, "multi_worker" on each GPU of the workers
    that the environment variable TF_CONFIG lists. Without GPUs a machine is one replica.

    Raises:
        ValueError: for another name, or a TF_CONFIG that is missing or malformed.
    """
    if name not in STRATEGIES:
        raise ValueError(f"A strategy must be one of {STRATEGIES}. Received: {name!r}")
    if name == "multi_worker":
        check_tf_config(os.environ.get("TF_CONFIG"))
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if name == "mirrored" else tf.distribute.get_strategy()


def check_tf_config(text):
    """Refuses what is no TF_CONFIG of a worker: TensorFlow takes parts of it, or waits for ever."""
    rule = (
        'TF_CONFIG must be like {"cluster": {"worker": ["host0:port", "host1:port"]}, "task": '
        '{"type": "worker", "index": 0}}, with the same cluster and another index on each worker'
    )

    def require(valid, why):
        if not valid:
            raise ValueError(f"{rule}: {why}. Received: TF_CONFIG={text!r}")

    require(text, "it is not set")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        require(False, f"it is no JSON ({error})")
    require(isinstance(config, dict) and isinstance(config.get("cluster"), dict), "no cluster")
    cluster, task = config["cluster"], config.get("task")
    unknown = set(cluster) - {"chief", "worker"}
    require(not unknown, f"{sorted(unknown)} are not among chief and worker")
    for hosts in cluster.values():
        valid = isinstance(hosts, list) and hosts and all(isinstance(host, str) for host in hosts)
        require(valid, "hosts must be lists of strings")
        require(all(host.rpartition(":")[2].isdigit() for host in hosts), "a host has no port")
    addresses = sum(cluster.values(), [])
    require(addresses, "no hosts")
    require(len(set(addresses)) == len(addresses), "a host and port is listed twice")
    require(isinstance(task, dict) and task.get("type") in cluster, "no task of the cluster")
    index = task.get("index")
    valid = isinstance(index, int) and 0 <= index < len(cluster[task["type"]])
    require(valid, f"its index must be in 0..{len(cluster[task['type']]) - 1}")


def run_workers(command, count, **options):
    """Runs `command` as `count` workers on free ports of this machine.

    Returns their exit codes. When one fails, the others have `GRACE` seconds to notice.
    """
    processes = start_workers(command, count, **options)
    # Else `kill`, and what runs jobs, would end this program and leave the workers behind.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    deadline = time.monotonic() + GRACE
                    for process in processes:
                        process.wait(max(0, deadline - time.monotonic()))
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return [process.returncode for process in processes]


def start_workers(command, count, **options):
    """The processes, `subprocess.Popen(command, **options)` with a TF_CONFIG each."""
    with contextlib.ExitStack() as stack:  # all open at once, so that no port comes twice
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        processes.append(subprocess.Popen(command, env=environment, **options))
    return processes
