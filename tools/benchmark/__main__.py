"""Times this library against its peers: the same architecture, side by side, in one run.

Each contestant has a process of its own. They take turns, one call each in every round, so that a
change of the machine's pace meets all of them alike; compare ratios, not milliseconds. So does a
loop that is always the same, by which a table says how much other work disturbed it. Peers come
with `pip install keras_flows[bench]`; one that is missing is a row that says so. `compiled` is
PyTorch's `torch.compile`, whose time is in the first step; `graphs` is its mode "reduce-overhead",
of CUDA graphs. A machine's GPU is used by all.

`bare` is the physical limit: the couplings' networks alone, trained on noise, with nothing around;
`convolutions` are Glow's one by one.

`--strategy multi_worker` times Glow on 1 and 2 workers instead, `--serving` as it is exported.
"""

import argparse
import json
import os
import sys

import comparison
import ours
import scaling
import serving

DEPTHS = {"glow": [4, 8, 16, 32], "real_nvp": [8], "nsf": [8]}
BATCH_SIZE = {"glow": 32, "real_nvp": 1024, "nsf": 1024}


def main():
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.serving:
        experiment = serving_experiment(parser, arguments)
    elif arguments.strategy:
        experiment = scaling_experiment(arguments)
    else:
        experiment = comparison_experiment(parser, arguments)
    every = {}
    for depth, figures, table in experiment:
        every[depth] = figures
        print(table, end="\n\n", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(every, file, indent=1)


def make_parser():
    parser = argparse.ArgumentParser(prog="tools/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=DEPTHS, default="glow")
    parser.add_argument("--depth", type=int, nargs="+", help="default: 4 8 16 32; real_nvp, nsf: 8")
    parser.add_argument("--batch_size", type=int, help="default: 32; real_nvp, nsf: 1024")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--dtype", choices=ours.POLICIES, default="float32", help="bfloat16: mixed, or autocast"
    )
    parser.add_argument("--only", nargs="+", default=(), help="names of contestants besides ours")
    parser.add_argument("--strategy", choices=["multi_worker"], help="Glow on 1 and 2 workers")
    parser.add_argument(
        "--serving", action="store_true", help="Glow as exported, at batch sizes 1, 8 and 64"
    )
    parser.add_argument("--json", help="file for all figures")
    return parser


# Experiments: each gives a depth, its figures and their table, one depth after the other.


def serving_experiment(parser, arguments):
    for name in ("batch_size", "only", "strategy"):
        if getattr(arguments, name):
            parser.error(f"--serving takes no --{name}")
    if arguments.model != "glow":
        parser.error(f"--serving times glow. Received: {arguments.model}")
    for depth in arguments.depth or [8]:
        figures = serving.measure(depth, arguments.rounds)
        yield depth, figures, serving.table(figures, depth)


def scaling_experiment(arguments):
    for depth in arguments.depth or [8]:
        batch_size = arguments.batch_size or BATCH_SIZE["glow"]
        figures = scaling.measure(depth, batch_size, arguments.rounds)
        yield depth, figures, scaling.table(figures, depth)


def comparison_experiment(parser, arguments):
    model = arguments.model
    names = list(comparison.CONTESTANTS[model])
    unknown = set(arguments.only) - set(names)
    if unknown:
        parser.error(f"--only takes {', '.join(names)}. Received: {', '.join(unknown)}")
    if arguments.only:
        names = ["keras_flows", *(name for name in names if name in arguments.only)]
    batch_size = arguments.batch_size or BATCH_SIZE[model]
    for depth in arguments.depth or DEPTHS[model]:
        sizes = (depth, batch_size)
        figures = comparison.measure(model, names, *sizes, arguments.rounds, arguments.dtype)
        yield depth, figures, comparison.table(figures, *sizes, arguments.dtype)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # else off without AVX512
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else one process takes all
    if sys.argv[1:2] == ["--worker"]:  # as turns.worker_command has it
        module, *rest = sys.argv[2:]
        {"comparison": comparison, "scaling": scaling}[module].work(*rest)
    else:
        main()
