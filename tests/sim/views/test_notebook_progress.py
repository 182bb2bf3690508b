"""sim.views.notebook_progress: what stays below a cell when a run is over."""

from __future__ import annotations

import IPython.display

from sim.views import notebook_progress


class Handle:
    """What `IPython.display.display` returns for what can be drawn anew."""

    def __init__(self):
        self.drawn = []

    def update(self, content):
        self.drawn.append(content.data)


def test_a_run_without_a_snapshot_does_not_stay_at_its_start(short_path, monkeypatch):
    handle = Handle()
    monkeypatch.setattr(notebook_progress, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda content, display_id: (handle.update(content), handle)[1])
    with notebook_progress.progress_in_cell(f"ipc://{short_path}/telemetry"):
        assert handle.drawn == ["<p>starting</p>"]
    assert handle.drawn == ["<p>starting</p>", ""]
