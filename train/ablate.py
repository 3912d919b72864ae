"""What each choice is worth, at a small budget: trains the shipped recipes with one thing changed at a time.

python -m train.ablate --data PATH [--steps 300] [--denoiser-steps 2500] [--only resampler|denoiser [--set KEY=VALUE]]
python -m train.ablate --config train/configs/letters_resampler.toml --data PATH --seconds 150 [--set KEY=VALUE]

The second is of a recipe of R2IR, every row for the same processor time. In the first, of the digits' recipes, batches
are small, for CPUs, and so is the denoiser. What is trained is kept in runs/ablations, and the same command goes on; a
table goes to a file there, row by row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from train.engine.cli import data_arguments, script
from train.evaluation.ablation import SMALL, Data, denoisers, place, resamplers
from train.evaluation.tables import Table
from train.profiling import equal_time


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_arguments(parser)
    parser.add_argument("--steps", type=int, default=300, help="of a resampler (default: %(default)s)")
    parser.add_argument("--denoiser-steps", type=int, default=2500, help="of a denoiser (default: %(default)s)")
    parser.add_argument("--generated", type=int, default=500, help="images to judge (default: %(default)s)")
    parser.add_argument("--only", choices=("resampler", "denoiser"), help="one of the two tables")
    parser.add_argument("--config", help="recipe of an R2IR, in place of the digits'")
    parser.add_argument("--seconds", type=float, default=150.0, help="with --config: of a row (default: %(default)g)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --only or --config: for every row"
    )
    parser.add_argument("--run", type=Path, help="whose R2IR the denoisers get (default: the first of its table)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.set and not (args.only or args.config):
        raise ValueError("--set: goes with --only or --config, the two recipes have settings of their own")
    data = Data(args.data, args.label_column)
    if args.config:
        written(equal_time.resamplers(args.out, data, args.config, args.seconds, args.set), args.out / "r2ir.md")
        return
    run, small = args.run or place(args.out, "resampler", "as shipped"), {k: v + args.set for k, v in SMALL.items()}
    tables = {
        "resampler": lambda: resamplers(args.out, data, args.steps, small["resampler"]),
        "denoiser": lambda: denoisers(args.out, data, args.denoiser_steps, args.generated, run, small["denoiser"]),
    }
    for stage in (args.only,) if args.only else tables:
        written(tables[stage](), args.out / f"{stage}.md")


def written(tables: Iterable[Table], file: Path) -> None:
    """Writes a table whenever it has one row more, and prints the last."""
    for table in tables:
        file.write_text(table.markdown() + "\n", encoding="utf-8")
    print(table.markdown(), flush=True)


if __name__ == "__main__":
    script(main)
