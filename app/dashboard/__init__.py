"""The pages at `/` for the people who run the receiver: what happens, what went wrong, and what to do next."""
