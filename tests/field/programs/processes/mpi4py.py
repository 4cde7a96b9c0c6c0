# /// script
# requires-python = "==3.14.*"
# dependencies = ["mpi4py==4.1.2", "mpich==5.0.2"]
# ///
"""
Four ranks by `mpiexec` (MPICH): each calls `run` between collective calls, sends and receives on omniloop's loop by `to_thread`, and forgets work before MPI is finalised.
"""

import subprocess
import sys
from pathlib import Path

from ending import right

Path("rank.py").write_text(
    """\
import asyncio
from mpi4py import MPI
import omniloop
world = MPI.COMM_WORLD
me, all_of_us = world.Get_rank(), world.Get_size()
async def double(number):
    await asyncio.sleep(0.01)
    return number * 2
async def passes_on():
    right, left = (me + 1) % all_of_us, (me - 1) % all_of_us
    request = world.isend(me, dest=right)
    received = await asyncio.to_thread(world.recv, source=left)
    await asyncio.to_thread(request.wait)
    return received
async def late():
    await asyncio.sleep(0.3)
    with open(f"late{me}.txt", "w") as file:
        file.write("done")
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
assert world.allreduce(omniloop.run(double(me))) == sum(2 * rank for rank in range(all_of_us))
assert omniloop.run(passes_on()) == (me - 1) % all_of_us
omniloop.go(late())
world.Barrier()
""",
    encoding="utf-8",
)
mpiexec = Path(sys.executable).with_name("mpiexec")
ran = subprocess.run([mpiexec, "-n", "4", sys.executable, "rank.py"], capture_output=True, text=True, timeout=100)
assert ran.returncode == 0, ran
assert all(Path(f"late{rank}.txt").read_text() == "done" for rank in range(4))
right(
    "Four ranks that wait for the loop between collective calls and receive in its worker threads; the drain in each."
)
