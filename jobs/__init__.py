"""What runs inside an allocation: who am I, and one thin entry for every stage."""
