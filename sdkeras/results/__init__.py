"""What flows out: frozen records of numbers with their evidence. NumPy only; they compute and print nothing."""
