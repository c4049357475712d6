"""From a checkpoint to a bundle: the graph, its files, the proof that they answer alike, and the registry."""
