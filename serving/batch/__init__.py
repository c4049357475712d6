"""`lightning batch-predict`: answers for a folder of any size, finished exactly once."""
