"""One reader per label format, each yielding Records."""
