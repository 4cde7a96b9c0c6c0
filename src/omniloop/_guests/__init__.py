"""What other libraries need of the core: each is loaded when its library is, and hooks itself in."""
