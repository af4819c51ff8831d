"""What is on disk, read and checked once."""
