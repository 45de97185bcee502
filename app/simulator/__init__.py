"""A Jasper PIM to test against: its webhook API, a catalogue that changes, and callbacks.

Shares no code with the receiver, so that a misread wire format is not mirrored on both sides.
"""

from app.simulator.api import create_simulator
from app.simulator.options import OptionsError, SimulatorOptions
from app.simulator.server import running_simulator
from app.simulator.simulator import Simulator

__all__ = ["OptionsError", "Simulator", "SimulatorOptions", "create_simulator", "running_simulator"]
