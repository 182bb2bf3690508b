"""The host of a run: its limits, what a topology asks of it, what processes use, and what a bare wake-up costs."""
