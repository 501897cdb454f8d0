"""What the operations of this wing stand on, without any mathematics: see minimal_nn.cpu."""
