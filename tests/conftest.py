"""What every test runs under: nothing is left behind, and what chance decided can be repeated.

After each test the descriptors, threads, child processes (and theirs: orphans are adopted), socket files and
segments of this process are what they were before. The resource tracker of ``multiprocessing`` and its pipe are
the interpreter's and stay.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import multiprocessing.util
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from sim.host.holdings import Holdings, holdings

pytest_plugins = ["tests.fault_matrix", "pytester"]

PATIENCE_S = 30.0  # for what is on its way out already: never waited for when all is well
PR_SET_CHILD_SUBREAPER = 36
SEED_OPTION = "hypothesis_seed"

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
for name, count in {"sample": 40, "full": 200, "nightly": 5000}.items():
    settings.register_profile(
        name, deadline=None, print_blob=True, derandomize=False, max_examples=count, suppress_health_check=SLOW
    )

ROOT = Path(__file__).parent
FOLDER_MARKERS = {"system": "system", "faults": "system", "qemu": "qemu"}

# Sockets and temporary files of the tests and of everything they start: a short path, and private.
TEMPORARY = Path(tempfile.mkdtemp(prefix="ivt-", dir="/tmp"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    full = config.getoption("--full")
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full" if full else "sample"))
    # The processes of pytest-xdist do not get the option: each would draw other samples, and refuse to start.
    told = getattr(config, "workerinput", {}).get(SEED_OPTION) or getattr(config.option, SEED_OPTION, None)
    setattr(config.option, SEED_OPTION, str(random.SystemRandom().randrange(1 << 32)) if told is None else told)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays where it was
    # Thousands of interpreters are started: each would compile all that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONUNBUFFERED", None)  # who lacks it has commands that must flush what they print
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):  # what is printed does not depend on the caller's
        os.environ.pop(name, None)
    # Nothing here uses BLAS, whose threads take 50 ms of a CPU where numpy is loaded; the command does this itself.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ["PYTHONSAFEPATH"] = "1"  # interpreters that tests start import nothing from the current directory
    os.environ["XDG_RUNTIME_DIR"] = os.environ["TMPDIR"] = tempfile.tempdir = str(TEMPORARY)
    atexit.register(shutil.rmtree, TEMPORARY, ignore_errors=True)
    # A background job of a shell ignores SIGINT, one of nohup(1) SIGHUP, and so would all that the tests start.
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)
    # Orphans become ours and are seen by the leak check, instead of disappearing to init.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput[SEED_OPTION] = node.config.getoption(SEED_OPTION)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="all cases of tests marked `sample`, tests marked `full`, more examples"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The folder of a test is its marker. Without ``--full``, leave out what `full` and `sample` mark. Order them."""
    for item in items:
        if marker := FOLDER_MARKERS.get(item.path.relative_to(ROOT).parts[0]):
            item.add_marker(marker)
    if not config.getoption("--full"):
        left_out = {item for item in items if item.get_closest_marker("full")} | _beyond_sample(config, items)
        if left_out:
            config.hook.pytest_deselected(items=[item for item in items if item in left_out])
            items[:] = [item for item in items if item not in left_out]
    # The slow ones first: no process is left alone with one of them at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keep what was collected out of each garbage collection: there are some 10^6 objects, and they stay."""
    gc.collect()
    gc.freeze()


def _beyond_sample(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    """The cases that the session's seed does not draw, of each test marked ``sample(count)``.

    A case that the command line names is not left out.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample") and not any(item.nodeid.endswith(name) for name in config.args):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for test, of_test in cases.items():
        (count,) = of_test[0].get_closest_marker("sample").args  # type: ignore[union-attr]
        drawn = random.Random(f"{config.getoption(SEED_OPTION)}/{test}").sample(of_test, min(count, len(of_test)))
        left_out |= set(of_test) - set(drawn)
    return left_out


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption(SEED_OPTION)} (again with --hypothesis-seed={config.getoption(SEED_OPTION)})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One row that says which QEMUs the tests ran against."""
    from tests.real_qemu import qemus_in_words

    reports = [each for key in ("passed", "failed") for each in terminalreporter.getreports(key)]
    if any("qemu" in getattr(each, "keywords", ()) for each in reports):
        terminalreporter.write_line(qemus_in_words())


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this session, as the first lines of pytest's output tell it."""
    return int(request.config.getoption(SEED_OPTION))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A private directory whose path leaves room for a socket's name (107 bytes, unix(7))."""
    path = Path(tempfile.mkdtemp(dir=TEMPORARY))
    yield path
    shutil.rmtree(path)


def held() -> Holdings:
    """What this process holds; a directory of multiprocessing's own is left out."""
    own = multiprocessing.process.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    return holdings(_sockets(TEMPORARY, own))


def _sockets(top: Path, without: str | None) -> Iterator[str]:
    """Socket files and the private directories of runs, without directories of pytest."""
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if not name.startswith("pytest-of-")]
        if directory == without:
            continue
        yield from (str(Path(directory, name)) for name in names if name.startswith("ivsim-"))
        for name in files:
            path = Path(directory, name)
            with contextlib.suppress(OSError):  # ended meanwhile
                if stat.S_ISSOCK(path.lstat().st_mode):
                    yield str(path)


def _reap(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                os.waitpid(pid, os.WNOHANG)


def _describe_children(pids: list[int]) -> list[str]:
    described = []
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            described.append(f"{pid}: {command}")
    return described


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves something behind."""
    before = held()
    yield
    left = held().beyond(before)
    if not left or FAILED in request.node.stash:
        return  # what a failed test holds, its traceback may hold
    # Garbage in a cycle is no leak yet, and processes and threads take a moment to end.
    gc.collect()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        _reap([pid for pid in left.get("processes", []) if isinstance(pid, int)])
        left = held().beyond(before)
        if not left:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    if "processes" in left:
        left["processes"] = list(_describe_children([pid for pid in left["processes"] if isinstance(pid, int)]))
    pytest.fail(f"{request.node.nodeid} left behind: {left}", pytrace=False)


@pytest.fixture
def orphans_alone() -> Iterator[None]:
    """For a test that leaves memory, directories or processes without an owner, or removes all that there are.

    Tests run beside each other, and `ivsim clean` removes what is another test's, too.
    """
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def make_site(short_path: Path) -> Iterator[Callable[..., Any]]:
    """Builds a server with its clients; options are the server's."""
    from tests.serving import SteppedServer  # only the tests that use it need all of ``sim`` to load

    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Any:
            made = SteppedServer(short_path / "server.sock", **options)
            stack.enter_context(made.stack)
            return made

        yield make


@pytest.fixture
def site(make_site: Callable[..., Any]) -> Any:
    return make_site()
