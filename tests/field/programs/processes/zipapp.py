# /// script
# requires-python = "==3.14.*"
# dependencies = ["shiv==1.0.8", "pex==2.105.2", "pip==26.3"]
# ///
"""
One program with omniloop inside of it as one file: by `zipapp`, where the package is imported from the archive, by shiv and by PEX. It calls `run`, `to_process` and `python -m omniloop`'s module, and forgets work.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import omniloop
from ending import right

Path("app").mkdir()
Path("app/program.py").write_text(
    """\
import asyncio, sys, omniloop
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2
async def late():
    await asyncio.sleep(0.3)
    print("late", "zip" if ".pyz/" in omniloop.__file__ else "folder", flush=True)
def main():
    print(omniloop.run(double(21)), omniloop.to_process(pow, 2, 10).result(timeout=60), flush=True)
    omniloop.go(late())
""",
    encoding="utf-8",
)
site = Path(omniloop.__file__).parents[1]
shutil.copytree(site / "omniloop", "app/omniloop", ignore=shutil.ignore_patterns("__pycache__"))
shutil.copytree(site / "janus", "app/janus", ignore=shutil.ignore_patterns("__pycache__"))
shutil.copy(site / "typing_extensions.py", "app")


def python(*command):
    ran = subprocess.run([sys.executable, "-I", *command], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran
    return ran.stdout


python("-m", "zipapp", "app", "-m", "program:main", "-o", "zipapp.pyz")
python("-m", "shiv", "--site-packages", "app", "-e", "program:main", "-o", "shiv.pyz")
python("-m", "pex", "-D", "app", "-e", "program:main", "-o", "pex.pyz")
printed = {name: python(f"{name}.pyz") for name in ("zipapp", "shiv", "pex")}
assert printed["zipapp"] == "42 1024\nlate zip\n", printed
assert printed["shiv"] == printed["pex"] == "42 1024\nlate folder\n", printed
right(
    "Each of the three files: `run`, a call in a process of its own, and the drain, also with the package imported from the archive."
)
