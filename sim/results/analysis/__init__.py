"""From recordings to figures: matching, latencies, intervals, histograms, flows, balance. Pure."""
