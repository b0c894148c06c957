"""`python -m demo`: a network trained on handwritten digits, planned into a quarter of its memory, and fine-tuned inside it."""
