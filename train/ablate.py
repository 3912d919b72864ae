"""What each choice is worth, at a small budget: trains the shipped recipes with one thing changed at a time.

python -m train.ablate --data PATH [--steps 300] [--denoiser-steps 2500] [--only resampler|denoiser [--set KEY=VALUE]]

Batches are small, for CPUs, and so is the denoiser. What is trained is kept in runs/ablations, and the same command
goes on; a table goes to a file there, row by row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train.engine.cli import data_arguments, script
from train.evaluation.ablation import SMALL, Data, denoisers, place, resamplers


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_arguments(parser)
    parser.add_argument("--steps", type=int, default=300, help="of a resampler (default: %(default)s)")
    parser.add_argument("--denoiser-steps", type=int, default=2500, help="of a denoiser (default: %(default)s)")
    parser.add_argument("--generated", type=int, default=500, help="images to judge (default: %(default)s)")
    parser.add_argument("--only", choices=("resampler", "denoiser"), help="one of the two tables")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --only: for every row")
    parser.add_argument("--run", type=Path, help="whose R2IR the denoisers get (default: the first of its table)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.set and not args.only:
        raise ValueError("--set: goes with --only, the two recipes have settings of their own")
    run, small = args.run or place(args.out, "resampler", "as shipped"), {k: v + args.set for k, v in SMALL.items()}
    data = Data(args.data, args.label_column)
    tables = {
        "resampler": lambda: resamplers(args.out, data, args.steps, small["resampler"]),
        "denoiser": lambda: denoisers(args.out, data, args.denoiser_steps, args.generated, run, small["denoiser"]),
    }
    for stage in (args.only,) if args.only else tables:
        for table in tables[stage]():  # one row more each time
            (args.out / f"{stage}.md").write_text(table.markdown() + "\n", encoding="utf-8")
        print(table.markdown(), flush=True)


if __name__ == "__main__":
    script(main)
