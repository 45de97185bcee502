"""Comparing with Jasper's own lists, and writing what was missed; fetching what a callback did not carry."""
