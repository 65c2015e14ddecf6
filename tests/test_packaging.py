"""The built wheel: what it holds, and that it runs without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import evopress

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "evopress", "conf")
SHORT = (
    "search=uniform",
    "data.window=64",
    "data.calibration_tokens=256",
    "data.search_tokens=256",
    "data.validation_tokens=256",
    "data.test_tokens=256",
    "outputs=outputs",
    "hydra.run.dir=run",
)


def pip(*arguments: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, because setuptools writes `build/` next to them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "sources" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "sources").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "sources" / name)
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", ".", "./sources", folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that takes the place of site-packages."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", "packages", str(wheel), folder=folder)
    return folder / "packages"


def run_installed(installed: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed package and its libraries.

    -S keeps .pth files out, and with them an editable installation of the checkout.
    """
    libraries = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    offline = {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **offline, "PYTHONPATH": libraries, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_metadata_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    version = wheel.name.split("-")[1]
    assert {name.partition("/")[0] for name in names} == {"evopress", f"evopress-{version}.dist-info"}


def test_the_wheel_holds_every_module_configuration_and_asset(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(evopress.__file__).parent
    modules = {f"evopress/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assets = {
        f"evopress/{path.relative_to(package).as_posix()}"
        for path in (package / "assets").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    settings = {f"evopress/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert modules | assets | settings <= names
    for licence in ("LICENSE", "evopress/assets/text/LICENSE.python.txt"):
        assert any(name.endswith(f"dist-info/licenses/{licence}") for name in names)


@pytest.mark.slow
def test_the_installed_package_reads_its_own_configuration(installed, tmp_path):
    code = "import evopress.config; print(evopress.config.CONFIG_FOLDER)"
    finished = run_installed(installed, "-c", code, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == str(installed / "evopress" / "conf")


@pytest.mark.slow
def test_the_installed_package_runs_from_another_directory_without_network(installed, tmp_path):
    finished = run_installed(installed, "-m", "evopress.run", *SHORT, folder=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert str(ROOT) not in (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
