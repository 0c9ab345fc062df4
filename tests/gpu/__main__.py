"""Where every process of these checks begins: ``python3 tests/gpu`` followed by what `main` in child.py is to do.

``python -m tests.gpu.run`` would do for one of them, but an installed package may be called tests too.
"""

import sys
import types
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent

if __name__ == "__main__":
    tests = types.ModuleType("tests")
    tests.__path__ = [str(_ROOT / "tests")]
    sys.modules["tests"] = tests
    sys.path[0] = str(_ROOT)
    if sys.argv[1:2] and sys.argv[1] in ("check", "peer", "keep"):
        from tests.gpu.child import main as act

        sys.exit(act(sys.argv[1:]))
    from tests.gpu.run import main as run

    sys.exit(run())
