"""Which word with which region?
================================

A map for each word, of the pairs of that word and a patch. The pairs and the terms that belong to
no pair sum to the cosine. The program prints the sum over each word's pairs.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(3, objects=["horse", "dog"])
found = explain(scene.image, "a horse and a dog", model="demo/vit", side="pairs")

for word, share in zip(found.names, found.scores[0].tolist(), strict=True):
    print(f"{share:+.3f}  {word}")
found.save("pairs.png")
