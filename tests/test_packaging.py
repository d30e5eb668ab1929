"""What the package installs for C programs, and its command line."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss as fl
from fastloss import config

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "train.c"
CC = os.environ.get("CC", "cc").split()


# In CI its absence ends the run, see conftest.py.
needs_library = pytest.mark.skipif("cython" not in fl.engines(), reason="installed without the C library")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command away from the source tree, whose fastloss/ a Python would import."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )


def output(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = run(*command, cwd=cwd, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def needs(program: str) -> None:
    """Skips the test where the program is not installed; in CI that is a failure."""
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{program} is not installed")


def train(program: Path) -> None:
    last = output(program, cwd=program.parent).splitlines()[-1]
    assert float(last.split()[-1].rstrip("%")) > 90, last


@needs_library
def test_versions_agree():
    header = Path(fl.get_include(), "fastloss.h").read_text()
    version = re.search(r'^#define FL_VERSION "(.+)"', header, re.M)[1]
    number = int(re.search(r"^#define FL_VERSION_NUMBER (\d+)", header, re.M)[1])
    major, minor, patch = map(int, version.split("."))
    assert version == fl.__version__ == importlib.metadata.version("fastloss")
    assert number == 10000 * major + 100 * minor + patch
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text() + " "


@needs_library
def test_installed_header_is_the_one_in_the_tree():
    assert Path(fl.get_include(), "fastloss.h").read_bytes() == (ROOT / "include" / "fastloss.h").read_bytes()


@needs_library
def test_config_prints_where_the_library_is(tmp_path):
    lines = output(
        sys.executable, "-m", "fastloss", "config", "--cflags", "--libs", "--cmakedir", cwd=tmp_path
    ).splitlines()
    include, lib = fl.get_include(), fl.get_library_dir()
    assert lines == [f"-I{include}", f"-L{lib} -lfastloss -Wl,-rpath,{lib}", str(Path(lib, "cmake", "fastloss"))]


def test_info_is_show_config(tmp_path, capsys):
    printed = output(sys.executable, "-m", "fastloss", "info", cwd=tmp_path)
    fl.show_config()
    assert printed.splitlines()[0] == capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required"),
        (("bench-mark",), "invalid choice"),
        (("config",), "give at least one of --cflags, --libs and --cmakedir"),
        pytest.param(("config", "--lib"), None, marks=needs_library),  # argparse takes an unambiguous beginning
        (("config", "--ldflags"), "unrecognized arguments: --ldflags"),
    ],
)
def test_command_line_errors(tmp_path, arguments, message):
    result = run(sys.executable, "-m", "fastloss", *arguments, cwd=tmp_path)
    assert result.returncode == (0 if message is None else 2)
    assert "Traceback" not in result.stderr
    if message is not None:
        assert message in result.stderr


def test_without_the_library_config_says_so_in_one_sentence(monkeypatch, tmp_path, capsys):
    from fastloss.__main__ import main

    monkeypatch.setattr(config, "_PACKAGE", tmp_path)
    assert main(["config", "--cflags"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"fastloss: this fastloss has no C library \(.*\): install it without .*\n", captured.err)


@needs_library
def test_example_by_config(tmp_path):
    needs(CC[0])
    flags = output(sys.executable, "-m", "fastloss", "config", "--cflags", "--libs", cwd=tmp_path).split()
    output(*CC, EXAMPLE, *flags, "-lm", "-o", tmp_path / "train", cwd=tmp_path)
    train(tmp_path / "train")


@needs_library
def test_example_with_the_static_library(tmp_path):
    needs(CC[0])
    archive = Path(fl.get_library_dir(), "libfastloss.a")
    output(*CC, EXAMPLE, config.cflags(), archive, "-lm", "-o", tmp_path / "train", cwd=tmp_path)
    train(tmp_path / "train")


@needs_library
def test_example_by_pkg_config(tmp_path):
    needs(CC[0])
    needs("pkg-config")
    path = str(Path(fl.get_library_dir(), "pkgconfig"))
    query = ("pkg-config", "--cflags", "--libs", "fastloss")
    flags = output(*query, cwd=tmp_path, PKG_CONFIG_PATH=path).split()
    assert (
        output("pkg-config", "--modversion", "fastloss", cwd=tmp_path, PKG_CONFIG_PATH=path).strip() == fl.__version__
    )
    output(*CC, EXAMPLE, *flags, "-lm", "-o", tmp_path / "train", cwd=tmp_path)
    train(tmp_path / "train")


@needs_library
def test_example_by_cmake(tmp_path):
    needs("cmake")
    folder = output(sys.executable, "-m", "fastloss", "config", "--cmakedir", cwd=tmp_path).strip()
    output("cmake", "-S", EXAMPLE.parent, "-B", tmp_path / "build", f"-Dfastloss_DIR={folder}", cwd=tmp_path)
    output("cmake", "--build", tmp_path / "build", cwd=tmp_path)
    train(tmp_path / "build" / "train")


@needs_library
@pytest.mark.parametrize("version", ["0.99", "1.0"])
def test_cmake_refuses_another_version(tmp_path, version):
    needs("cmake")
    project = f"cmake_minimum_required(VERSION 3.16...4.0)\nproject(p C)\nfind_package(fastloss {version} REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    result = run("cmake", "-B", "build", f"-Dfastloss_DIR={config.cmake_dir()}", cwd=tmp_path)
    assert result.returncode != 0
    assert "fastloss" in result.stderr


@needs_library
def test_shared_library_carries_its_version(tmp_path):
    """A program that was linked with it asks for major version 0, and for nothing beside it but libc and libm."""
    if sys.platform != "linux":
        pytest.skip("reads ELF")
    needs("objdump")
    dynamic = output("objdump", "-p", Path(fl.get_library_dir(), "libfastloss.so"), cwd=tmp_path)
    assert re.search(r"SONAME +libfastloss\.so\.0\n", dynamic)
    assert all(re.match(r"lib[cm]\.|ld-", name) for name in re.findall(r"NEEDED +(\S+)", dynamic)), dynamic
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic
