"""Which word with which region?
================================

The cosine is a sum over pairs of a word and a place, and of terms that belong to no pair. Here is
each word's share in the pairs.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(3, objects=["horse", "dog"])
found = explain(scene.image, "a horse and a dog", model="demo/vit", side="pairs")

for word, share in zip(found.names, found.scores[0].tolist(), strict=True):
    print(f"{share:+.3f}  {word}")
found.save("pairs.png")
