"""Gives back what it got, by reference."""
