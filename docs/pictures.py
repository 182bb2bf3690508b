"""Take the pictures of README and docs/ anew, in notebooks/pictures: `make pictures`. Needs Chromium.

report.png is the head of the report of `examples/stall.toml`, live.png is the page of `ivsim top --web` while
`slow_reader` runs, and slow_reader.png is the picture of that name in `notebooks/doorbell_storm.ipynb`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.browser import Page, browser

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "notebooks" / "pictures"
WIDTH = 1082
IVSIM = (sys.executable, "-m", "sim")
LIVE_S = 40


def take_report(page: Page, runs: Path) -> None:
    """The head of a report, down to the first two charts."""
    html = runs / "report.html"
    command = [*IVSIM, "run", "examples/stall.toml", "--quiet", "--runs", str(runs / "report")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (run,) = (runs / "report").iterdir()
    subprocess.run([*IVSIM, "report", str(run), "-o", str(html)], cwd=ROOT, check=True)
    page.resize(WIDTH, 1205)
    page.open(html.as_uri())
    page.picture(PICTURES / "report.png")


def take_live(page: Page, runs: Path) -> None:
    """The page of a run that goes on, when most of it is over."""
    run = [*IVSIM, "run", "slow_reader", "--set", f"run.duration_s={LIVE_S}", "--runs", "runs"]
    with subprocess.Popen(run, cwd=runs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        directory = running.stderr.readline().rpartition(": ")[2].strip()
        while "machines up" not in running.stderr.readline():
            assert running.poll() is None, "the run has ended"
        with subprocess.Popen([*IVSIM, "top", "--web", directory], cwd=runs, stdout=subprocess.PIPE, text=True) as top:
            assert top.stdout is not None
            page.resize(WIDTH, 955)
            page.open(top.stdout.readline().split()[-1])
            page.wait("/, [0-9] s left/.test(document.getElementById('meta').textContent)")
            page.picture(PICTURES / "live.png")
            top.terminate()
        for _ in running.stderr:  # to its end: a full pipe would stop it
            pass


def take_slow_reader() -> None:
    """The picture that the notebook shows."""
    notebook = json.loads((ROOT / "notebooks" / "doorbell_storm.ipynb").read_text())
    cells = [each for each in notebook["cells"] if "slow reader" in "".join(each["source"])]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    (shown,) = (data["image/png"] for data in outputs if "image/png" in data)
    (PICTURES / "slow_reader.png").write_bytes(base64.b64decode(shown))


def main() -> None:
    take_slow_reader()
    with browser() as page, tempfile.TemporaryDirectory() as runs:
        take_report(page, Path(runs))
        take_live(page, Path(runs))


if __name__ == "__main__":
    main()
