"""The rooms of `xnai top`: what is looked at, the lines made of it, and the screen that they stand on."""
