"""What was made, for people to look at."""
