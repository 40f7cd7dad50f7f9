"""Word by word
===============

What does each word add to a caption? Its target is the caption's embedding minus that of the
caption without it. A word that hardly matters has a pale map.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(3, objects=["horse", "dog"])
found = explain(scene.image, "a horse and a dog", model="demo/vit", words=True)

for word, norm in zip(found.names, found.norms.tolist(), strict=True):
    print(f"{norm:.2f}  {word}")
found.save("words.png")
