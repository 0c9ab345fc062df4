"""The box of ``tests/supervisor``, whose daemon the tests start themselves, beside the one that everybody has."""

import runpy
from pathlib import Path

_shared = runpy.run_path(str(Path(__file__).parents[1] / "supervisor" / "conftest.py"))
make_module_box = _shared["make_module_box"]
module_box = _shared["module_box"]
no_leaks = _shared["no_leaks"]
