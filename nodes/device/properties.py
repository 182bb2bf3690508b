"""The properties of a device as a module of `nodes.device`: only the device of 2012 checks them by itself.

Programs that use the device without a simulator import them from here; `nodes.device.qemu_1_1.properties` defines them.
"""

from __future__ import annotations

from nodes.device.qemu_1_1.properties import STEPS, DeviceExitError, Plan, Properties, parse_size, realize

__all__ = ["STEPS", "DeviceExitError", "Plan", "Properties", "parse_size", "realize"]
