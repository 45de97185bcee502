"""Callbacks as they came, as people and services read them."""
