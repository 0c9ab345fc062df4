"""Write the bundle with random weights, always the same: ``python -m examples.tiny.make --out FOLDER``."""

import argparse
from pathlib import Path

from examples.bundles import write_bundle

TEMPLATE = Path(__file__).parent / "bundle"
SEED = 0


def make(out: Path) -> Path:
    """Write the bundle to *out*; gives *out*."""
    import torch

    from examples.tiny.bundle.model import build

    torch.manual_seed(SEED)
    return write_bundle(TEMPLATE, out, build().state_dict())


def main() -> None:
    """Read the command line and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    print(make(parser.parse_args().out))


if __name__ == "__main__":
    main()
