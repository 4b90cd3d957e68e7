"""What a network is and costs, found out without training it."""
