"""The processes that decode and compute, and the service's end of the pipes to them."""
