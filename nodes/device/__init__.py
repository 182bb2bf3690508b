"""The PCI device: what it is, how it answers, how devices of the field differ."""
