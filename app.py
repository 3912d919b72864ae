"""The page of a clone and of a Space, with the models of `weights/`; what it does is in `r2id/demo/`."""

import os
from pathlib import Path

if "SPACES_ZERO_GPU" in os.environ:
    import spaces  # noqa: F401  has to come before torch

from r2id.demo import cli


def main() -> None:
    cli.main(Path(__file__).parent / "weights")


if __name__ == "__main__":
    main()
