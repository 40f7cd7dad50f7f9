"""Which patch answers which token?
===================================

ColPali and its relatives score a page by the best patch for each token of a query. This one is
tiny and random, so it shows how to call it, and not what a trained one sees. What its prompt
answers is in no map.
"""

import torch
from transformers import ColPaliConfig, ColPaliForRetrieval

from captum_clip.apps import late_interaction
from captum_clip.demo.scenes import draw_scene

torch.manual_seed(1)
small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
vision = small | {"model_type": "siglip_vision_model", "image_size": 112, "patch_size": 14}
text = small | {"model_type": "gemma", "vocab_size": 99, "num_key_value_heads": 1}
pali = {"vision_config": vision, "text_config": text, "projection_dim": 32}
pali |= {"model_type": "paligemma", "image_token_index": 98}
model = ColPaliForRetrieval(ColPaliConfig(vlm_config=pali)).eval()
image = draw_scene(3, objects=["horse", "dog"]).image  # 224 x 224
pixels = torch.tensor(image[::2, ::2]).movedim(-1, 0)[None] / 127.5 - 1
ids = torch.tensor([[98] * 64 + [5, 6, 7]])  # 8 x 8 patches, then the prompt
with torch.no_grad():
    page = model(input_ids=ids, pixel_values=pixels).embeddings
    query = model(input_ids=torch.tensor([[11, 12, 13]])).embeddings[0]  # three tokens
found = late_interaction.explain(query, page, (8, 8), patches=ids[0] == 98, images=image)
found.save("late_interaction.png")
