"""One image, two texts
=======================

Where is the horse, and where is the dog? The brighter, the more a place raises the cosine.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(0, objects=["horse", "dog"])
found = explain(scene.image, ["a horse", "a dog", "a banana"], model="demo/vit")

for text, cosine in zip(found.names, found.scores[0].tolist(), strict=True):
    print(f"{cosine:+.3f}  {text}")
found.save("two_texts.png")
