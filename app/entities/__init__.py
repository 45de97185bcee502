"""The latest state of each entity and its history, as services read them."""
