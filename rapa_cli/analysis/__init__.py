"""What can be said of a network: its error, votes, reduction and similarity of tiles, and what arrays make of it."""
