"""Files on disk, read and checked once."""
