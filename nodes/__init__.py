"""The model of a machine. Pure: nothing here opens a descriptor or reads a clock."""
