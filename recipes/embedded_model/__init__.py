"""The recipe of the embedded model: `python -m recipes.embedded_model.build --out FOLDER`, from the root of a checkout.

It made all of `src/dynts/tiny/weights`, and gives the same bytes again. It is no part of the installed package, which
holds the weights, the task's problems and what the demo needs (`dynts.tiny`).
"""
