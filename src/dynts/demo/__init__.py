"""The demo on the embedded model (`dynts demo`)."""
