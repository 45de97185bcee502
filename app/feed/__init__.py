"""The ordered feed of events, as services read it."""
