"""From the tables of a file to machines: names, groups, programs, arguments, patterns, traces, timeline."""
