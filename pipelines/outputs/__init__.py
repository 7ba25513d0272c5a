"""What is written of a segmented study."""
