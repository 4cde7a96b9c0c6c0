"""Runs the README's two commands as they stand there, each to its end."""

import re
import subprocess
import sys
from pathlib import Path

readme = Path(__file__).resolve().parents[1] / "README.md"
commands = re.findall(r"^python -m pip install .*&& python .*$", readme.read_text(encoding="utf-8"), re.MULTILINE)
if len(commands) != 2:
    sys.exit(f"README.md should hold two commands that begin with `python -m pip install`; it holds {len(commands)}.")
codes = []
for command in commands:
    print(f"$ {command}", flush=True)
    codes.append(
        subprocess.run(command, shell=True, cwd=readme.parent, stdin=subprocess.DEVNULL, check=False).returncode
    )
sys.exit(max(map(abs, codes)))
