"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels and a small convolutional net."""
