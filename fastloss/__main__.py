"""The command line: ``python -m fastloss demo | bench | info | config``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fastloss as fl
from fastloss import config


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["demo"]:  # reads its own arguments, --help among them
        from fastloss import demo

        return demo.main(list(argv[1:]))
    if argv[:1] == ["bench"]:
        from fastloss.bench import command

        return command.main(list(argv[1:]))

    parser = argparse.ArgumentParser(prog="python -m fastloss", description=fl.__doc__)
    parser.add_argument("--version", action="version", version=f"fastloss {fl.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | bench | info | config")
    commands.add_parser("demo", help="train a language model on the Python standard library's source")
    commands.add_parser("bench", help="measure fastloss against a copy and against what is installed")
    commands.add_parser("info", help="what runs here: engines, threads, instruction set")
    where = commands.add_parser("config", help="where the C library is, for compilers and CMake")
    where.add_argument("--cflags", action="store_true", help="flags that compile a C program")
    where.add_argument("--libs", action="store_true", help="flags that link it")
    where.add_argument("--cmakedir", action="store_true", help="the folder for CMake's fastloss_DIR")
    args = parser.parse_args(argv)

    if args.command == "config" and not (args.cflags or args.libs or args.cmakedir):
        where.error("give at least one of --cflags, --libs and --cmakedir")
    try:
        if args.command == "info":
            fl.show_config()
        else:
            chosen = ((config.cflags, args.cflags), (config.libs, args.libs), (config.cmake_dir, args.cmakedir))
            print("\n".join([answer() for answer, wanted in chosen if wanted]))
    except (FileNotFoundError, ValueError) as error:  # no C library; a variable of ours that says nonsense
        print(f"fastloss: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
