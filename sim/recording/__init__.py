"""The recording of one device: what a worker stores while it runs, and how it is read during and after the run.

    header   the words of the header, the counters, the states of a worker
    layout   where each section begins
    file     the mapped file
    pack     many small recordings in one mapped file
    reader   the only decoder: whole files after a run, mapped ones during it (needs numpy; workers do not import it)
    tally    sums over the drains of a recording in progress (numpy)
    console_file   the name of the file that keeps the console of a guest

Workers import this package, so nothing here is heavy.
"""

from sim.recording.file import Recording
from sim.recording.header import Counters, State
from sim.recording.layout import RecordingLayout
from sim.recording.pack import RecordingPack

__all__ = ["Counters", "Recording", "RecordingLayout", "RecordingPack", "State"]
