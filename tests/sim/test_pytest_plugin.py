"""sim.pytest_plugin: test suites of users, run by a pytest of their own in another process."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest

from tests.system.transcripts import ROOT

PASSES = {
    "a peer rings a peer": """
        def test_it(ivshmem_peer):
            first, second = ivshmem_peer(), ivshmem_peer()
            assert first.ring(second.id, 1)
            assert second.wait(1).doorbells == 1
    """,
    "machines of an included program": """
        def test_it(ivshmem_server, ivshmem_machines, ivshmem_peer):
            server = ivshmem_server(vectors=4, size="64K")
            peer = ivshmem_peer()
            echoes = ivshmem_machines("echo", count=3, to=[peer.id])
            for vector, echo in enumerate(echoes):
                peer.ring(echo.id, vector)
                assert peer.wait(vector).doorbells == 1
            assert server.peers == [0, 1, 2, 3] and len(peer.memory) == 65536
    """,
    "two servers and an old dialect": """
        import sim
        def test_it(ivshmem_server, ivshmem_peer):
            old, new = ivshmem_server(dialect="legacy"), ivshmem_server()
            assert (ivshmem_peer(old).dialect, ivshmem_peer().dialect) == ("legacy", "v0")
            with sim.connect(new.path, vectors=2) as peer:
                assert peer.id == 1
    """,
    "ivshmem v2": """
        def test_it(ivshmem_server, ivshmem_peer, ivshmem_machines):
            ivshmem_server(dialect="v2", max_peers=3, output_size="4K", size="64K")
            first, second = ivshmem_peer(), ivshmem_peer()
            second.state = 3
            assert first.wait(0).vector == 0 and first.states == [0, 3, 0]
            first.sections.own[:2] = b"hi"
            assert bytes(second.sections.output(0)[:2]) == b"hi"
            (states,) = ivshmem_machines("states")
            assert states.id == 2
    """,
    "a run and its results": """
        TOPOLOGY = '''
        run.duration_s = 0.2
        machines.a.program = "ping"
        machines.b.program = "echo"
        '''
        def test_it(ivshmem_run):
            run = ivshmem_run(TOPOLOGY)
            assert run.status == "finished" and run.balanced and run.summary["delivered"] > 0
    """,
    "what needs a QEMU is skipped where there is none": """
        def test_it(ivshmem_qemu):
            raise AssertionError
    """,
}
FAILS = {
    "a doorbell that does not come": (
        """
        import pytest
        @pytest.mark.ivshmem_timeout(0.05)
        def test_it(ivshmem_peer):
            ivshmem_peer().wait(0)
        """,
        [
            "*TimeoutError: expected an interrupt of vector 0 within 0.05 s, got none*",
            "*ivshmem wire of *",
            "connection 1: ID 0, 4194304 bytes of memory, clean",
            "*the client's own vector 1: to be waited for",
        ],
    ),
    "a program that raises": (
        """
        def program(guest):
            yield None
            raise LookupError("no such register")
        def test_it(ivshmem_machines, ivshmem_peer):
            machine, = ivshmem_machines(program)
            ivshmem_peer().ring(machine.id)
            machine.wait_until_finished(20)
        """,
        ["*LookupError: no such register*", "*1 error*"],
    ),
    "a run that fails": (
        """
        def test_it(ivshmem_run, tmp_path):
            (tmp_path / "p.py").write_text("def wrong(guest):\\n    raise KeyError('lost')\\n    yield\\n")
            ivshmem_run("run.duration_s = 0.1\\n[machines.a]\\nprogram = 'wrong'\\n", programs=tmp_path / "p.py")
        """,
        ["*the run has failed: *", "*ivshmem run*"],
    ),
    "a segment and a descriptor that are left": (
        """
        import os
        def test_it(ivshmem_peer):
            ivshmem_peer()
            os.eventfd(0)
            open(f"/dev/shm/ivsim-{os.getpid()}-left", "w").close()
        def test_next(ivshmem_peer):
            name = f"/dev/shm/ivsim-{os.getpid()}-left"
            assert os.path.exists(name)
            os.unlink(name)
        """,
        ["*the test has left behind: *descriptors*eventfd*segments*-left*", "*2 passed, 1 error*"],
    ),
}


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the suite in the plugin's own directory, with no other plugin; returns the result."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(*arguments):
        return pytester.runpytest_subprocess("-p", "sim.pytest_plugin", "-p", "no:cacheprovider", *arguments)

    return run


def test_suites_that_pass(pytester, run, monkeypatch):
    monkeypatch.setenv("IVSHMEM_QEMU", "no-such-qemu")
    pytester.makepyfile(**{f"test_{index}": source for index, source in enumerate(PASSES.values())})
    result = run("-rs")
    result.assert_outcomes(passed=len(PASSES) - 1, skipped=1)
    result.stdout.fnmatch_lines(["*no-such-qemu is not on PATH*"])


@pytest.mark.parametrize("name", FAILS)
def test_suites_that_fail_say_why(pytester, run, name):
    source, lines = FAILS[name]
    pytester.makepyfile(source)
    result = run()
    assert result.ret == 1
    for line in lines:
        result.stdout.fnmatch_lines([line])


def test_a_suite_that_does_not_use_it_loads_nothing_of_it(pytester, run):
    pytester.makepyfile("""
        import sys
        def test_it():
            assert not {"sim.client", "sim.wire", "nodes", "topologies", "numpy", "zmq", "asyncio"} & sys.modules.keys()
    """)
    run().assert_outcomes(passed=1)


def test_the_driver_test_of_the_examples_passes_with_ten_lines_a_test(pytester, run, monkeypatch):
    monkeypatch.setenv("IVSHMEM_QEMU", "no-such-qemu")
    example = ROOT / "examples" / "driver_test" / "test_driver.py"
    shutil.copy(example, pytester.path)
    run().assert_outcomes(passed=2, skipped=1)
    tests = [node for node in ast.parse(example.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [test.name for test in tests if test.end_lineno - test.lineno + 1 > 10] == []
    assert len(tests) == 3


def test_the_driver_test_runs_where_it_is_with_nothing_but_pytest():
    """Its configuration is its own: the repository's names plugins of `make test`."""
    command = [sys.executable, "-m", "pytest", "-p", "sim.pytest_plugin", "-p", "no:cacheprovider", "--collect-only"]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "examples/driver_test"], cwd=ROOT, env=alone, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "3 tests collected" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_recipes_install_what_the_driver_test_needs_and_run_it():
    for name in ("github-actions.yml", "gitlab-ci.yml"):
        recipe = (ROOT / "examples" / "driver_test" / name).read_text()
        assert "pip install ivshmem-sim pytest" in recipe
        assert "qemu-system-x86" in recipe
        assert "python -m pytest" in recipe
