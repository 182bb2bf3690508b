"""What an outlier was: from looks at processes, or a kernel trace, to causes, each with the time that it explains."""
