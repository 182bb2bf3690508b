"""The topology file: its tables, their values, the line of each, and the problems found."""
