"""
fsspec's own tests of a file system, with omniloop in the place of its loop thread. On demand, see `suites.py`.

Its source distribution holds the tests that every file system has to pass, and none of its own. They are run here on its two
async ones that need no server: the async wrappers of the local file system and of that in memory.
"""

import pytest
from suites import on_demand, outcomes, source_of

pytestmark = on_demand

IN_ITS_PLACE = """
    import asyncio

    import fsspec.asyn
    import omniloop

    async def _loop():
        return asyncio.get_running_loop()

    def get_loop():
        return omniloop.run(_loop())

    calls = []

    def sync(loop, func, *args, timeout=None, **kwargs):
        calls.append(func)
        try:
            return omniloop.run(func(*args, **kwargs), timeout=timeout or None)
        except omniloop.TaskTimeoutError as error:
            raise fsspec.asyn.FSTimeoutError from error

    fsspec.asyn.get_loop = get_loop
    fsspec.asyn.sync = sync

    def pytest_unconfigure():
        assert fsspec.asyn.iothread == [None]
        print(f"{len(calls)} calls came by", file=open("calls", "w"))
"""

FILE_SYSTEMS = """
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.tests import abstract


class Async(AsyncFileSystemWrapper):
    # It is left out of the wrapper, and the tests prepare their files with it.
    def open(self, *args, **kwargs):
        return self.sync_fs.open(*args, **kwargs)


class Local(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self):
        return Async(LocalFileSystem(auto_mkdir=True), asynchronous=False)

    @pytest.fixture
    def fs_path(self, tmpdir):
        return str(tmpdir)

    @pytest.fixture
    def fs_sanitize_path(self):
        return make_path_posix


class Memory(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self):
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        return Async(MemoryFileSystem(), asynchronous=False)

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self):
        return ""


for place in (Local, Memory):
    for tests in ("Copy", "Get", "Open", "Pipe", "Put"):
        name = f"Test{place.__name__}{tests}"
        globals()[name] = type(name, (getattr(abstract, f"Abstract{tests}Tests"), place), {})
"""


@pytest.mark.promise(
    "fsspec's tests of a file system pass with `run` in the place of its loop thread", section="The tests of others"
)
def test_fsspecs_tests_of_a_file_system_pass(tmp_path):
    root = source_of("fsspec", tmp_path)
    (root / "test_file_systems.py").write_text(FILE_SYSTEMS)

    passed, failed = outcomes(root, ["test_file_systems.py"], IN_ITS_PLACE)

    assert failed == set()
    assert len(passed) >= 270
    # A suite that went round omniloop would show nothing; the file is not written where fsspec has started its own thread.
    assert int((root / "calls").read_text().split()[0]) > 500
