"""Other builds of fastloss: made from a revision of the repository, and loaded beside this one."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PACKAGE = "fastloss"


class RevisionError(Exception):
    """Why there is no build of a revision, in one sentence."""


def commit(revision: str, repository: Path) -> str:
    """The full hash of a commit."""
    return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") or _fail(
        f"{str(repository)!r} has no revision {revision!r}"
    )


def working_tree(repository: Path) -> str:
    """A commit of the repository's files as they are, changes included: HEAD's where there are none."""
    return _git(repository, "stash", "create") or commit("HEAD", repository)


def build(revision: str, repository: Path, builds: Path) -> Path:
    """The folder of a revision's build among `builds`, made from a temporary worktree where it is not there yet."""
    name = commit(revision, repository)
    tree_hash = _git(repository, "rev-parse", f"{name}^{{tree}}")  # equal files are built once, by each Python
    folder = builds.resolve() / f"{tree_hash}-{sys.implementation.cache_tag}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(prefix="fastloss-") as temporary:
        tree, target = Path(temporary, "tree"), Path(temporary, "target")
        _git(repository, "worktree", "add", "--quiet", "--detach", str(tree), name)
        try:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(target),
                str(tree),
            ]
            if importlib.util.find_spec("Cython"):  # what the build needs is here: no download
                command.append("--no-build-isolation")
            done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree))
        if done.returncode != 0:
            print(done.stdout + done.stderr, file=sys.stderr)
            _fail(f"the build of {revision!r} failed: see above")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(target, folder)  # as a whole: what is there is complete
    return folder


def load(folder: Path, engines: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """The public functions of the build in a folder, which lives on beside the one that is imported.

    Its modules leave sys.modules again. So what they import late has to be imported here: these engines.
    """
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        other = importlib.import_module(PACKAGE)
        if Path(str(other.__file__)).parent.parent.resolve() != folder.resolve():
            _fail(f"{str(folder)!r} holds no build of {PACKAGE}")
        for engine in engines:
            importlib.import_module(f"{PACKAGE}.engines").get(engine)
        return {name: getattr(other, name) for name in other.__all__}
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(own)


def _git(repository: Path, *arguments: str) -> str:
    """What git prints; "" where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        _fail("git is not installed")
    return done.stdout.strip() if done.returncode == 0 else ""


def _fail(reason: str) -> Any:
    raise RevisionError(reason)
