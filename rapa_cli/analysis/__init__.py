"""What a trained network says: error, votes, reduction to ordinary convolutions, similarity of its tiles."""
