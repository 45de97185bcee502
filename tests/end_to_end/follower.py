"""A service as another team would write it: follows the feed as a consumer, and writes down what it was given.

Called with an address, a key, the name of a consumer and a file. Each event is a line of the file, written after a little
work and before the loop asks for the next one; so what is in the file was handled, and a kill may come anywhere.
"""

import logging
import sys
import time

from jasper_receiver_client import Feed

url, key, consumer, path = sys.argv[1:]
logging.basicConfig()
with Feed(url, key, consumer=consumer) as feed, open(path, "a", buffering=1) as done:  # noqa: PTH123 - in lines
    for event in feed.follow(limit=20, wait=2):
        time.sleep(0.005)
        done.write(f"{event.sequence} {event.id}\n")
