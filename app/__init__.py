"""jasper-receiver: callbacks from Jasper PIM in, ordered and durable events out."""
