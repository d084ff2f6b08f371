"""The wheel installs and runs outside the repository, and CITATION.cff can be read."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def run(*words: object, cwd: Path) -> str:
    """The output of a program that does not see this working tree."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_runs_the_demo_in_a_clean_environment(tmp_path: Path) -> None:
    """The environment holds the wheel, and sees the dependencies of this one to save their installation."""
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    run(sys.executable, "-m", "pip", *build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("difflens-*.whl")
    assert {Path(name).parts[0].split("-")[0] for name in ZipFile(wheel).namelist()} == {"difflens"}

    home = tmp_path / "environment"
    venv.create(home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    place = run(python, "-c", "import difflens; print(difflens.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(home)

    small = "--train-images 40 --test-images 20 --effort 0.01 --samples 2 --sampling-steps 2 --device cpu"
    run(home / "bin" / "difflens", "demo", *small.split(), "--out", tmp_path / "demo", cwd=tmp_path)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "difflens"
    assert {"message", "authors"} <= {*citation}
    paper = citation["preferred-citation"]
    assert "2311.17921" in paper["url"]
    assert {"type", "title", "authors"} <= {*paper}
    assert all({"given-names", "family-names"} == {*author} for author in paper["authors"])
