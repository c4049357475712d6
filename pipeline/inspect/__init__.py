"""Looks inside a network: what it costs, what each layer sees, what excites it, where its answers come from."""
