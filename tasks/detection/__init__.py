"""YOLO-style detection: head, assignment, loss and decoding."""
