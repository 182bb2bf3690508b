"""The run directory on disk: files, schemas, streams, the manifest, events."""
