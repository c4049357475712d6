"""From labelled files on disk to batches."""
