"""The one way to write: group commit of deliveries, events and entity state."""
