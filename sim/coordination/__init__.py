"""The coordinator of a run: machines and domains, the timeline, migrations, and what a run shows while it lasts."""
