"""What a wheel holds, what importing it loads, and that four generic folders never become top-level packages."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("supervisor", "sandbox", "ipc", "cli")
#: What the client alone must not need.
HEAVY = ("torch", "msgspec", "typer", "rich", "structlog", "psutil", "safetensors", "cgroupspy")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, the wheel made from it, and in ``tree/`` the wheel made from the checkout itself."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    subprocess.run([*build, out, ROOT], check=True, capture_output=True)
    subprocess.run([*build, out / "tree", "--wheel", ROOT], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def client_python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel installed and, of everything else, only what the base install declares."""
    home = tmp_path_factory.mktemp("client")
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    site = Path(run(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-index", "--no-deps"]
    subprocess.run([*pip, next(dist.glob("*.whl"))], check=True)
    ours = Path(sysconfig.get_path("platlib"))
    for name in ("zmq", "msgpack", "numpy", "numpy.libs", "pyzmq.libs"):
        if (ours / name).exists():
            (site / name).symlink_to(ours / name)
    return python


def run(python: Path | str, code: str, *options: str) -> str:
    """What *code* prints in a fresh interpreter that starts outside of the checkout."""
    done = subprocess.run([python, *options, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


@contextmanager
def opened(path: Path) -> Iterator[set[str]]:
    """The names in a wheel."""
    with zipfile.ZipFile(path) as archive:
        yield set(archive.namelist())


def test_wheel_of_the_sdist_is_the_wheel_of_the_tree(dist: Path) -> None:
    """Both ways to a wheel put the same files into it."""
    with opened(next(dist.glob("*.whl"))) as from_sdist, opened(next(dist.glob("tree/*.whl"))) as from_tree:
        assert from_sdist == from_tree


def test_wheel_holds_every_source_file_once(dist: Path) -> None:
    """Each Python file of the four folders is in the wheel below bedsit/, and nothing is beside bedsit/."""
    sources = {f"bedsit/{path.relative_to(ROOT)}" for top in FOLDERS for path in (ROOT / top).rglob("*.py")}
    data = {f"bedsit/{path.relative_to(ROOT)}" for path in (ROOT / "supervisor").rglob("*.sql")}

    with opened(next(dist.glob("*.whl"))) as names:
        assert names >= sources | data | {"bedsit/__init__.py", "bedsit/py.typed"}
        assert {name.split("/")[0].split("-")[0] for name in names} == {"bedsit"}


def test_sdist_holds_what_a_packager_needs(dist: Path) -> None:
    """Tests, units, examples, documents and the licence travel in the sdist."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"LICENSE", "README.md", "Makefile", "constraints.txt", "pyproject.toml"} <= names
    assert {"tests/test_packaging.py", "examples/demo.py", "bench/floors.py", "docs/specification.md"} <= names
    assert any(name.startswith("systemd/") for name in names)


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_no_package_of_its_own(name: str) -> None:
    """From outside of the checkout only ``bedsit`` can be imported."""
    found = run(sys.executable, f"import importlib.util as u; print(u.find_spec('{name}'))", "-I")

    assert found == "None"
    assert run(sys.executable, f"import bedsit.{name}; print(bedsit.{name}.__name__)", "-I") == f"bedsit.{name}"


def test_base_install_is_the_client(client_python: Path) -> None:
    """With zmq, msgpack and numpy alone the client imports, and nothing heavier is loaded."""
    code = "import sys, bedsit; bedsit.Client, bedsit.AsyncClient; print([m for m in {} if m in sys.modules])"

    assert run(client_python, code.format(HEAVY), "-I") == "[]"


def test_base_install_says_what_the_command_needs(client_python: Path) -> None:
    """Without bedsit[server] there is no typer: the command ends in an import error, not in a half-working box."""
    done = subprocess.run(
        [client_python, "-I", "-m", "bedsit.cli.main"], capture_output=True, text=True, check=False, cwd="/"
    )

    assert done.returncode == 1
    assert "No module named 'typer'" in done.stderr


def test_daemon_never_loads_zmq_or_torch() -> None:
    """Importing everything that bedsitd imports brings neither libzmq, torch nor NVML's binding into the process."""
    code = "import sys, bedsit.supervisor.__main__; print([m for m in ('zmq', 'torch', 'pynvml') if m in sys.modules])"

    assert run(sys.executable, code, "-I") == "[]"


def test_help_is_quick_to_load() -> None:
    """``bedsit --help`` loads none of the heavy parts."""
    code = (
        "import sys, bedsit.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'zmq', 'numpy', 'msgspec') if n in sys.modules])"
    )

    assert run(sys.executable, code, "-I").splitlines()[-1] == "[]"
