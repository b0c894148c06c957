"""Plans: what they are asked for with, how they are answered, and how they come to be."""
