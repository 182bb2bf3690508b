"""The causes of an outlier: from samples of processes, or a kernel trace, to causes with the time of each."""
