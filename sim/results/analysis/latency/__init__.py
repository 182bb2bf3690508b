"""The latencies of a run: what each is, percentiles and their intervals, histograms."""
