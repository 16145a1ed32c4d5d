"""How fast decoding is, and how near to what the hardware allows: `dynts bench`."""
