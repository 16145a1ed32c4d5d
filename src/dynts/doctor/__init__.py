"""Whether this machine is fit for dynts: gathered in `facts`, judged in `findings`, shown by `dynts doctor`."""
