"""Which words fit?
===================

The other way round: which words of a text raise the cosine with this image (orange), and which
lower it (blue)?
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(0, objects=["horse"])
texts = ["a horse and a dog", "a banana and a horse"]
found = explain(scene.image, texts, model="demo/vit", side="text")

for words in found.text_maps:
    print("  ".join(f"{word} {value:+.2f}" for word, value in words))
found.save("text_side.png")
