"""Operations whose backward uses a held form. One file a family; each is exact in the gradient of its input."""
