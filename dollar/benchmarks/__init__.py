"""What things cost: memory and time of a reward's gradient, counted and measured."""
