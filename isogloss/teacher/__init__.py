"""The teacher: what it reads, what it says of each row, and where that is kept."""
