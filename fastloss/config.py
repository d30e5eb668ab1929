"""Where the installed C library is: its header, its libraries, its CMake files."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _installed(folder: str, file: str) -> str:
    path = _PACKAGE / folder
    if not (path / file).is_file():
        raise FileNotFoundError(
            f"this fastloss has no C library ({path / file} does not exist): "
            "install it without FASTLOSS_NO_EXTENSION, on a machine with a C compiler"
        )
    return str(path)


def get_include() -> str:
    """The directory that holds fastloss.h.

    >>> import fastloss as fl, os
    >>> os.path.basename(fl.get_include())
    'include'
    """
    return _installed("include", "fastloss.h")


def get_library_dir() -> str:
    """The directory that holds libfastloss, static and shared, and pkgconfig/fastloss.pc.

    >>> import fastloss as fl, os
    >>> os.path.basename(fl.get_library_dir())
    'lib'
    """
    return _installed("lib", "libfastloss.a")


def cflags() -> str:
    """What a C compiler needs to compile a program that includes fastloss.h."""
    return f"-I{get_include()}"


def libs() -> str:
    """What it needs to link the shared library, and the program to find it when it runs."""
    folder = get_library_dir()
    return f"-L{folder} -lfastloss -Wl,-rpath,{folder}"


def cmake_dir() -> str:
    """What CMake needs as fastloss_DIR."""
    return _installed("lib/cmake/fastloss", "fastlossConfig.cmake")
