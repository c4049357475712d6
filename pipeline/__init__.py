"""What training and serving share, and everything that trains but is not a task."""
