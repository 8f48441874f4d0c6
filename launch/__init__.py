"""What a person types, and what asks the scheduler."""
