"""The coordinator of a run: machines and domains, the timeline, migrations, and the monitor of a run in progress."""
