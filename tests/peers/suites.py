"""
Runs the suite of another library, out of its source distribution, with something of ours in the place of what it tests.

`OMNILOOP_PEERS=1` fetches the source distributions with pip; with a folder instead of 1 they are taken from there. Nothing of them
is kept.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

from children import child_environment

WHERE = os.environ.get("OMNILOOP_PEERS", "")

on_demand = [
    pytest.mark.skipif(
        not WHERE, reason="fetches source distributions: set OMNILOOP_PEERS=1, or to a folder that has them"
    ),
    pytest.mark.timeout(600),
]


def source_of(name, folder, version=None):
    """The unpacked source distribution of *version* of a library, by default of the one that is installed."""
    if version is None:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    archive = f"{name}-{version}.tar.gz"
    found = Path(WHERE) / archive
    if not found.exists():
        if importlib.util.find_spec("pip") is None:
            pytest.fail(
                f"There is no {found}, and no pip here to fetch it. Set OMNILOOP_PEERS to a folder that has it."
            )
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        subprocess.run([*command, f"{name}=={version}"], check=True, timeout=300)
        found = folder / archive
    with tarfile.open(found) as source:
        source.extractall(folder, filter="data")
    return folder / f"{name}-{version}"


def outcomes(root, files, plugin, *flags):
    """The tests that passed, and those that failed."""
    (root / "twin_plugin.py").write_text(textwrap.dedent(plugin))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "-p", "twin_plugin", "-p", "no:omniloop", "-p", "no:xdist",
         "-p", "no:cacheprovider", "--timeout", "30", "-W", "ignore", *flags, *files],
        cwd=root,
        env={**child_environment(), "PYTHONPATH": f"{root}:{child_environment()['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )  # fmt: skip
    found = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for word, test in re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE):
        file, _, name = test.partition("::")
        found[word].add(f"{Path(file).name}::{name}")
    assert found["PASSED"], ended.stdout + ended.stderr
    return found["PASSED"], found["FAILED"] | found["ERROR"]


def only_by_design(passed, failed, by_design):
    """What fails is listed, and what is listed does not pass; some of it is skipped where something is not installed."""
    unexpected, outdated = sorted(failed - by_design.keys()), sorted(passed & by_design.keys())
    assert not unexpected, f"not listed, and failed: {unexpected}"
    assert not outdated, f"listed, and passed: {outdated}"
