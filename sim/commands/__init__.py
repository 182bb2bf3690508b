"""The commands of `ivsim`, a module for each family; `sim.cli` mounts them."""
