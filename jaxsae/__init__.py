"""jaxsae: train, evaluate and use sparse autoencoders in JAX."""

__version__ = "0.1.0"
