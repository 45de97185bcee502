"""Tries everything the receiver needs, and tells in words what is wrong: settings, database, Jasper's API, the way back in.

Changes nothing anywhere: Jasper is only asked with GET, and the callback that is sent the way Jasper would send one proves
nothing. On the way it tells what Jasper's answers show of the undocumented. No secret, no header's value and nothing of an
entity's data is ever told.
"""
